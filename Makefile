# Needs Python 3.11 or newer, make and a shell. Everything else is fetched into .venv and .build on first use.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help up test openclaw chaos check gen fmt bench bench-openclaw release-contract clean prepare

PORT ?= $(or $(RETINUE_PORT),8080)
STATE_DIR ?= $(or $(RETINUE_STATE_DIR),.retinue)
ARGS ?=

# The Python that .venv was made with comes first, so that it stays what it is.
PYTHONS := .venv/bin/python python3.11 python3.12 python3.13 python3.14 python3
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(PYTHONS); do "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
# They wait as much as they work: on two cores three are faster than two. Above four, the databases of the tests' own wait
# for one another's disk, and whole meshes for one another.
TEST_PROCESSES := 3
FAST := $(wildcard tests/tidy tests/unit tests/contract tests/integration)
WHOLE := $(wildcard tests/e2e tests/chaos)
# Gateways of the real OpenClaw take a core to start and for each agent's first turn: what must hold of it runs last.
CLAWED_PROCESSES := 2
CLAWED := tests/e2e/test_openclaw.py tests/contract/test_adapter_conformance.py tests/contract/test_openclaw_isolation.py
OPENCLAW := .build/openclaw
# buf keeps a cache, and the home folder may not be writable.
export BUF_CACHE_DIR := $(CURDIR)/.build/buf
# Many images set it. Tests start hundreds of processes, and without it each compiles anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

up: prepare ## start the mesh and talk to it; PORT, STATE_DIR, RUNTIMES and RETINUE_MODEL… hold
	@exec $(BIN)/retinue up --port "$(PORT)" --state-dir "$(STATE_DIR)" $(ARGS)

test: prepare ## run every test; ARGS="tests/unit -k lease" runs those alone
ifneq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest $(ARGS)
else
	@# While these install, one process compiles what all tests will import.
	@$(BIN)/python -m pytest --collect-only -qq tests >/dev/null 2>&1 & \
	  $(BIN)/python -m retinue_local.openclaw $(OPENCLAW) >/dev/null || echo "Tests that need OpenClaw are skipped." >&2; \
	  $(BIN)/python tests/plugins/mcp_conformance.py .build/mcp-conformance >/dev/null || echo "The official checks of MCP are skipped." >&2; \
	  wait
	@$(BIN)/python -m pytest -p no:schemathesis -m "not openclaw" --numprocesses $(TEST_PROCESSES) $(FAST)
	@$(if $(WHOLE),$(BIN)/python -m pytest -m "not openclaw" --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(WHOLE))
	@$(BIN)/python -m pytest -m "openclaw and not long" --numprocesses $(CLAWED_PROCESSES) --dist loadfile --no-loadscope-reorder $(CLAWED)
endif

openclaw: prepare ## run every test that needs the real OpenClaw, those that take minutes too
	@$(BIN)/python -m retinue_local.openclaw $(OPENCLAW) >/dev/null
	@$(BIN)/python -m pytest -m openclaw $(ARGS) tests/contract tests/integration tests/e2e

chaos: prepare ## kill everything everywhere, for half an hour, and judge; ARGS="--seeds 5 --partial", ARGS="--seed 7"
	@PYTHONPATH=tests/chaos:tests/plugins:tests/fakes $(BIN)/python -m harness $(ARGS)

check: prepare ## look without running: format, lint, types, import directions, the contract, what is generated
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy $(wildcard libs/*/src services/*/src gateway/src deploy/local/src deploy/local/prepare.py proto/generate.py)
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking proto --against proto/released.binpb
	$(BIN)/python proto/generate.py --check

gen: prepare ## render the contract again: stubs, Envoy's descriptors, OpenAPI
	@$(BIN)/python proto/generate.py
	@$(BIN)/python -m retinue_gateway.openapi > .build/openapi.json
	@mv .build/openapi.json gateway/src/retinue_gateway/openapi.json

fmt: prepare ## format everything in place
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format . && $(BIN)/buf format --write proto

bench: prepare ## measure the mesh against the bare model; prints a table, writes bench-results.json
	@$(BIN)/python tests/bench/turns.py $(ARGS)
	@$(BIN)/python tests/bench/fairness.py
	@$(BIN)/python tests/bench/sandbox.py
	@$(BIN)/python tests/bench/portability.py
	@$(BIN)/python tests/bench/decision.py

bench-openclaw: prepare ## measure the mesh on OpenClaw against OpenClaw driven directly; prints a table
	@$(BIN)/python tests/bench/openclaw.py $(ARGS)

release-contract: prepare ## make the contract as it is the one that later changes must not break
	@$(BIN)/buf build proto --exclude-source-info --output proto/released.binpb

clean: ## remove what was built and fetched; the state folder stays
	@rm -rf .venv .build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache bench-results.json
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

prepare:
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
	  echo "error: Python 3.11 or newer is needed; name yours with: make PYTHON=/path/to/python3" >&2; exit 2; fi
	@"$(PYTHON)" deploy/local/prepare.py
