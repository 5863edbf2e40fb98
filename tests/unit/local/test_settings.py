"""Settings of single services: read, passed on, and refused before anything starts."""

from pathlib import Path

import pytest
from retinue_kit.config import SettingError
from retinue_local import options, paths, plan, settings
from retinue_local.postgres import Home
from retinue_local.runtimes import Runtimes

ENVIRON = {"RETINUE_MODEL_BASE_URL": "http://127.0.0.1:1/v1", "RETINUE_MODEL": "m"}


def planned(*overrides, **environ):
    made = options.build({**ENVIRON, **environ}, state_dir=Path("/s"), workers=2, overrides=overrides)
    home = Home(Path("/s/postgres/data"), Path("/s/postgres/run"), Path("/programs"), None)
    plans = plan.make(plan.Ground(made, paths.of_state(Path("/s")), home, made.model, 8080, 0, Runtimes("light")))
    return {item.name: item.environ for item in plans}


def refused(*overrides, **environ):
    with pytest.raises(SettingError) as caught:
        planned(*overrides, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_override_reaches_each_process_of_its_service_and_no_other():
    environs = planned("worker.runtime_adapter_address=unix:/x.sock", RETINUE_LEASE_S="2")
    for name in ("worker-1", "worker-2"):
        assert environs[name]["RETINUE_RUNTIME_ADAPTER_ADDRESS"] == "unix:/x.sock"
    assert environs["gateway"]["RETINUE_RUNTIME_ADAPTER_ADDRESS"] == "unix:/s/run/runtime-adapter.sock"
    assert planned("worker.lease_s=9", RETINUE_LEASE_S="2")["worker-1"]["RETINUE_LEASE_S"] == "9"


def test_the_last_word_on_a_field_holds_and_values_may_hold_equals_signs():
    assert settings.parse(["a.b=1", "a.b=2=3", "c.d=x"]) == {"a": {"b": "2=3"}, "c": {"d": "x"}}


def test_overrides_are_handed_on_as_they_were_given():
    given = ["worker.lease_s=5", "gateway.redis_url=unix:///a"]
    assert settings.texts_of(settings.parse(given)) == given


@pytest.mark.parametrize(
    "text", ["worker", "worker.lease_s", "worker.lease_s=", "lease_s=5", ".lease_s=5", "worker.=5"]
)
def test_an_override_without_service_field_or_value_is_refused(text):
    assert f"--set {text!r} must be SERVICE.FIELD=VALUE" in refused(text)


def test_an_override_that_nobody_reads_is_refused_with_what_there_is():
    assert "there is no such service; there is courier, directory, gateway" in refused("wurker.lease_s=5")
    assert "worker has address, directory_address, drain_s, lease_s" in refused("worker.lease=5")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"RETINUE_LEASE_S": "soon"}, "worker: RETINUE_LEASE_S='soon' is not valid"),
        ({"RETINUE_LEASE_S": "-1"}, "worker: RETINUE_LEASE_S=-1 must be a number from 0.1 to 600"),
        ({"RETINUE_LEASE_S": "nan"}, "worker: RETINUE_LEASE_S=nan must be a number from 0.1 to 600"),
        ({"RETINUE_LEASE_S": "1"}, "worker: RETINUE_LEASE_S=1 must be at least twice RETINUE_RENEW_S=0.8"),
        ({"RETINUE_DRAIN_S": "1h"}, "worker: RETINUE_DRAIN_S='1h' is not valid"),
        ({"RETINUE_DRAIN_S": "-5"}, "worker: RETINUE_DRAIN_S=-5 must be a number from 0 to 3600"),
        ({"RETINUE_LOG_LEVEL": "loud"}, "RETINUE_LOG_LEVEL='loud' must be one of debug, info"),
        ({"RETINUE_POOL_SIZE": "many"}, "router: RETINUE_POOL_SIZE='many' is not valid"),
    ],
)
def test_a_value_that_a_service_would_refuse_is_refused_before_it_starts(environ, told):
    assert told in refused(**environ)


def test_a_wrong_override_is_told_with_its_service():
    assert "worker: RETINUE_SLOTS='x' is not valid" in refused("worker.slots=x")


def test_log_levels_are_read_in_either_case():
    assert planned(RETINUE_LOG_LEVEL="WARNING")
