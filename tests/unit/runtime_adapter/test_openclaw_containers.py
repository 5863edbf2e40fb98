"""What instances in containers are named, may do and read."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import RetinueError
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends import contained
from retinue_runtime_adapter.openclaw.backends.quantities import quantity
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Isolation

GOOD = {"address": "", "openclaw_image": "retinue/openclaw:1", "openclaw_proxy_url": "http://adapter:18791/v1"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("128974848", 128_974_848),
        ("129e6", 129_000_000),
        ("129M", 129_000_000),
        ("123Mi", 128_974_848),
        ("1.5Gi", 1_610_612_736),
        ("800Ki", 819_200),
        ("1500m", 1),
        ("", 0),
        ("-1", 0),
        ("1 Gi", 0),
        ("lots", 0),
        ("1Zi", 0),
    ],
)
def test_an_amount_is_read_as_the_cluster_writes_it(text: str, number: int) -> None:
    assert quantity(text) == number


@given(st.integers(0, 10**15), st.sampled_from(["Ki", "Mi", "Gi"]))
def test_an_amount_with_a_binary_suffix_is_that_many(number: int, suffix: str) -> None:
    power = {"Ki": 1, "Mi": 2, "Gi": 3}[suffix]
    assert quantity(f"{number}{suffix}") == Decimal(number) * 1024**power


def test_settings_that_can_work_are_taken() -> None:
    contained.check(Settings(**GOOD))
    contained.check(Settings(**GOOD, openclaw_owner="adapter-0.mesh"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"openclaw_image": ""}, "RETINUE_OPENCLAW_IMAGE"),
        ({"openclaw_proxy_url": ""}, "RETINUE_OPENCLAW_PROXY_URL"),
        ({"openclaw_proxy_url": "http://127.0.0.1:18791/v1"}, "RETINUE_OPENCLAW_PROXY_URL"),
        ({"openclaw_proxy_url": "http://[::1]:18791/v1"}, "RETINUE_OPENCLAW_PROXY_URL"),
        ({"openclaw_proxy_url": "http://localhost/v1"}, "RETINUE_OPENCLAW_PROXY_URL"),
        ({"openclaw_owner": "two words"}, "RETINUE_OPENCLAW_OWNER"),
        ({"openclaw_owner": "a" * 64}, "RETINUE_OPENCLAW_OWNER"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changed: dict[str, str], named: str) -> None:
    with pytest.raises(RetinueError, match=named):
        contained.check(Settings(**{**GOOD, **changed}))


def test_adapters_of_one_host_have_names_of_their_own() -> None:
    one = Settings(**GOOD, openclaw_state_dir="/a")
    other = Settings(**GOOD, openclaw_state_dir="/b")
    assert contained.owner(one, of_folder=True) == contained.owner(one, of_folder=True)
    assert contained.owner(one, of_folder=True) != contained.owner(other, of_folder=True)
    assert len(contained.owner(one, of_folder=True)) <= 63
    assert contained.owner(Settings(**GOOD, openclaw_owner="adapter-0"), of_folder=True) == "adapter-0"


def test_an_instance_is_named_as_a_dns_label_allows() -> None:
    assert contained.name_of("ins_01kabc") == "retinue-ins-01kabc"


def test_what_a_container_reads_holds_no_secret_and_its_own_folder() -> None:
    spec = InstanceSpec("ins_1", Isolation.CELL, "/host/ins_1", lambda _host, _port: b'{"token":"secret"}', 512, 1024)
    variables = contained.environment(spec, {})
    assert variables["RETINUE_STATE_DIR"] == "/var/lib/retinue/ins_1"
    assert variables["RETINUE_HEAP_MIB"] == "512"
    assert "secret" not in str(variables)
    assert contained.memory_mib(spec) > 1024
    assert contained.joined("10.0.0.1", 1) == "10.0.0.1:1"
    assert contained.joined("fd00::1", 1) == "[fd00::1]:1"
