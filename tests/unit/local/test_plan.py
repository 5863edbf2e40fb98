"""The list of processes, as data."""

from pathlib import Path

import pytest
from retinue_local import model_choice, options, paths, plan
from retinue_local.openclaw import Installed
from retinue_local.postgres import Home
from retinue_local.runtimes import Runtimes


@pytest.fixture
def ground():
    environ = {
        "RETINUE_MODEL_BASE_URL": "http://127.0.0.1:1/v1",
        "RETINUE_MODEL": "m",
        "RETINUE_MODEL_API_KEY": "secret",
        "RETINUE_LEASE_S": "2",
        "OPENAI_API_KEY": "secret",
        "AWS_SECRET": "secret",
        "PATH": "/bin",
    }
    made = options.build(environ, state_dir=Path("/s"), workers=2)
    home = Home(Path("/s/postgres/data"), Path("/s/postgres/run"), Path("/programs"), None)
    return plan.Ground(made, paths.of_state(Path("/s")), home, made.model, 8080, 0, Runtimes("light"))


def test_each_process_stands_after_what_it_needs(ground):
    seen = []
    for item in plan.make(ground):
        assert set(item.needs) <= set(seen), item.name
        seen.append(item.name)
    assert {"postgres", "redis", "envoy", "gateway", "worker-1", "worker-2", "courier", *plan.SERVICES} == set(seen)


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")])
def test_clients_are_given_an_address_to_connect_to(ground, host, shown):
    reached = ground._replace(options=ground.options._replace(host=host))
    assert plan.edge_address(reached) == f"http://{shown}:8080"


def test_the_offline_model_runs_only_where_it_is_chosen(ground):
    names = [item.name for item in plan.make(ground._replace(model=model_choice.OFFLINE, model_port=9))]
    assert "model" in names
    environ = plan.service_environ(ground._replace(model=model_choice.OFFLINE, model_port=9), "runtime-adapter")
    assert environ["RETINUE_MODEL_BASE_URL"] == "http://127.0.0.1:9/v1"


def test_what_the_operator_sets_is_passed_on_and_secrets_go_where_they_are_needed(ground):
    for item in plan.make(ground):
        secrets = [name for name, value in item.environ.items() if value == "secret"]
        assert secrets == (["RETINUE_MODEL_API_KEY"] if item.name == "runtime-adapter" else [])
        assert "AWS_SECRET" not in item.environ
    assert plan.service_environ(ground, "worker-1")["RETINUE_LEASE_S"] == "2"


def test_what_is_executed_is_written_down_in_the_state_folder_or_where_the_operator_says(ground):
    assert plan.service_environ(ground, "sandbox")["RETINUE_AUDIT_DIR"] == str(ground.paths.state / "audit")
    environ = ground.options.environ | {"RETINUE_AUDIT_DIR": "/var/log/own"}
    told = ground._replace(options=ground.options._replace(environ=environ))
    assert plan.service_environ(told, "sandbox")["RETINUE_AUDIT_DIR"] == "/var/log/own"


def test_rules_for_tools_are_found_wherever_services_begin(ground, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = ground.options.environ | {"RETINUE_POLICY_DIR": "rules"}
    told = ground._replace(options=ground.options._replace(environ=environ))
    assert plan.service_environ(told, "policy")["RETINUE_POLICY_DIR"] == str(tmp_path / "rules")
    chosen = ground._replace(options=ground.options._replace(overrides={"policy": {"policy_dir": "own"}}))
    assert plan.service_environ(chosen, "policy")["RETINUE_POLICY_DIR"] == str(tmp_path / "own")
    assert "RETINUE_POLICY_DIR" not in plan.service_environ(ground, "policy")


def test_only_owners_of_tables_may_change_them(ground):
    owners = [item.name for item in plan.make(ground) if "RETINUE_MIGRATE_DSN" in item.environ]
    assert owners == ["directory", "router"]
    assert plan.service_environ(ground, "worker-1")["RETINUE_POSTGRES_DSN"].startswith("postgresql://retinue_router@/")
    assert "RETINUE_POSTGRES_DSN" not in plan.service_environ(ground, "gateway")


def test_services_are_told_where_their_neighbours_are(ground):
    environ = plan.service_environ(ground, "gateway")
    assert environ["RETINUE_ADDRESS"] == "unix:/s/run/gateway.sock"
    assert environ["RETINUE_RUNTIME_ADAPTER_ADDRESS"] == "unix:/s/run/runtime-adapter.sock"
    assert environ["RETINUE_ASGI_SOCKET"] == "/s/run/gateway-asgi.sock"
    assert environ["RETINUE_REDIS_URL"] == "unix:///s/run/redis.sock"


def test_durability_is_on(ground):
    command = " ".join(ground.home.command())
    assert "fsync=on" in command
    assert "synchronous_commit=on" in command
    assert "listen_addresses= " in command


def test_the_courier_has_no_right_but_on_the_outbox_and_shares_the_routers_keys(ground):
    courier, router = (plan.service_environ(ground, name) for name in ("courier", "router"))
    assert courier["RETINUE_POSTGRES_DSN"].startswith("postgresql://retinue_courier@/")
    assert "RETINUE_SWEEP_DSN" not in courier
    assert courier["RETINUE_SEALING_KEYS_FILE"] == router["RETINUE_SEALING_KEYS_FILE"] == "/s/sealing-keys"
    assert "RETINUE_SEALING_KEYS_FILE" not in plan.service_environ(ground, "worker-1")


async def test_portability_alone_has_the_key_of_bundles_and_an_operators_own_is_not_made(ground, tmp_path):
    told = "RETINUE_BUNDLE_SIGNING_KEY_FILE"
    found = {item.name: item.environ[told] for item in plan.make(ground) if told in item.environ}
    assert found == {"portability": "/s/bundle-signing.key"}
    own = tmp_path / "own.key"
    options_ = ground.options._replace(overrides={"portability": {"bundle_signing_key_file": str(own)}})
    (portability,) = (p for p in plan.make(ground._replace(options=options_)) if p.name == "portability")
    await portability.prepare()
    assert not own.exists()


def test_the_adapter_alone_is_told_where_openclaw_is_and_all_are_told_what_is_on(ground):
    installed = Installed(Path("/s/openclaw/1-a"), "1")
    on = ground._replace(runtimes=Runtimes("openclaw,light", installed))
    for item in plan.make(on):
        if item.name in plan.SERVICES:
            assert item.environ["RETINUE_RUNTIMES"] == "openclaw,light"
        told = item.name == "runtime-adapter"
        assert (item.environ.get("RETINUE_OPENCLAW_DIR") == "/s/openclaw/1-a") is told
        assert (item.environ.get("RETINUE_OPENCLAW_STATE_DIR") == "/s/openclaw-instances") is told
    without = plan.service_environ(ground, "runtime-adapter")
    assert without["RETINUE_RUNTIMES"] == "light"
    assert "RETINUE_OPENCLAW_DIR" not in without
