"""The real OpenClaw, installed once for all tests."""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from retinue_local import openclaw

HOME = Path(__file__).resolve().parents[2] / ".build" / "openclaw"
"""Kept between test runs; `make test` fills it beforehand, for a test has less time than an installation may take."""


ASKED_LATE = {"openclaw", "real"}
"""Parameters of contract tests behind which a fixture asks for OpenClaw only once it is that one's turn."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "openclaw: needs the real OpenClaw; set by itself, `make test` runs them last")
    config.addinivalue_line("markers", "long: takes minutes; only `make openclaw` runs it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs OpenClaw: gateways are slow to start, so one process runs all of it and shares them."""
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        late = "contract" in item.path.parts and not ASKED_LATE.isdisjoint(filter(None, map(str, parameters)))
        if late or "openclaw_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.openclaw)


def tell(text: str) -> None:
    """Say how far the installation is, past what pytest keeps to itself."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"{text}\n")


@pytest.fixture(scope="session")
def openclaw_dir() -> Path:
    """A folder with Node and the pinned OpenClaw, as RETINUE_OPENCLAW_DIR names it.

    Where it cannot be had, tests that need it are skipped with the reason; in CI they fail.
    """
    try:
        with ThreadPoolExecutor(1) as aside:  # a loop may run here already, where an async fixture asks for this one
            return aside.submit(lambda: asyncio.run(openclaw.get(os.environ, HOME, tell)).folder).result()
    except openclaw.OpenClawError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
