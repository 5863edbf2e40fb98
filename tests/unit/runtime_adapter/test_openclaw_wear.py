"""How a gateway bears its work, as looks at it say; how often a tenant may do what costs everybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_runtime_adapter.domain import rates
from retinue_runtime_adapter.domain.rates import Rate
from retinue_runtime_adapter.openclaw import probing, wear
from retinue_runtime_adapter.openclaw.probing import SILENT, Health
from retinue_runtime_adapter.openclaw.wear import MIB, Finding, Wear

WELL, LAGGING = Health(answers=True), Health(answers=True, lags=True)


def test_one_that_lags_is_given_half_and_gets_all_back_one_by_one_once_it_is_well() -> None:
    gateway = Wear(4, 100)
    assert [gateway.feel(one, 0) for one in (WELL, LAGGING, LAGGING, WELL, LAGGING)] == [4, 2, 2, 3, 2]
    assert [gateway.feel(WELL, 1) for _ in range(4)] == [3, 4, 4, 4]
    assert [gateway.feel(one, 2) for one in (SILENT, WELL)] == [2, 3]
    assert gateway.worn is Finding.WELL


def test_one_that_has_a_single_slot_keeps_it() -> None:
    gateway = Wear(1, 100)
    assert [gateway.feel(one, 0) for one in (LAGGING, WELL)] == [1, 1]


def test_only_one_that_lags_all_the_time_is_worn_and_stays_so() -> None:
    gateway = Wear(4, 100)
    gateway.feel(LAGGING, 0)
    gateway.feel(WELL, wear.LAG_MAX_S - 1)
    gateway.feel(LAGGING, wear.LAG_MAX_S)
    assert (gateway.worn, gateway.why) == (Finding.WELL, "")
    gateway.feel(SILENT, 2 * wear.LAG_MAX_S)
    assert gateway.worn is Finding.LAG
    gateway.feel(WELL, 3 * wear.LAG_MAX_S)
    assert gateway.why == "its event loop has lagged behind for 5 minutes"


def test_one_that_takes_too_much_memory_is_worn_and_far_too_much_is_not_waited_for() -> None:
    gateway = Wear(4, 100)
    assert not gateway.weigh(100 * MIB)
    assert gateway.worn is Finding.WELL
    assert not gateway.weigh(101 * MIB)
    assert gateway.worn is Finding.MEMORY
    assert gateway.weigh(151 * MIB)


@pytest.mark.parametrize(
    ("body", "health"),
    [
        (b'{"ready":true,"eventLoop":{"degraded":false,"reasons":[]}}', WELL),
        (b'{"eventLoop":{"degraded":true,"reasons":["cpu","event_loop_utilization"]}}', WELL),
        (b'{"eventLoop":{"degraded":true,"reasons":["cpu","event_loop_delay"]}}', LAGGING),
        (b'{"eventLoop":{"degraded":true}}', LAGGING),
        (b"{}", WELL),
        (b"what?", WELL),
    ],
)
def test_a_gateway_that_works_does_not_lag_and_one_that_stands_still_does(body: bytes, health: Health) -> None:
    assert probing.read(body) == health


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=60))
def test_bounded_no_tenant_has_more_than_it_may_in_any_window(asked: list[tuple[str, int]]) -> None:
    rate, now, had = Rate(3, 100), 0.0, []
    for tenant_id, pause in asked:
        now += pause
        wait_s = rate.take(tenant_id, now)
        within = [at for tenant, at in had if tenant == tenant_id and at > now - 100]
        assert (wait_s > 0) is (len(within) >= 3)
        if wait_s:
            assert min(within) + 100 == now + wait_s
        else:
            had.append((tenant_id, now))


def test_bounded_who_did_it_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "TENANTS_MAX", 2)
    rate = Rate(1, 100)
    for tenant_id in "abc":
        assert not rate.take(tenant_id, 0)
    assert rate.take("b", 1)
    assert not rate.take("a", 1)
