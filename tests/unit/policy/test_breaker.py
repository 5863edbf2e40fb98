"""The circuit breaker's rules: each transition, and what holds whatever happens in whichever order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from retinue_kit.errors import Reason
from retinue_policy.domain.breaker import (
    AGAINST,
    FAILURES_MAX,
    FAILURES_OF_ALL_MAX,
    KEPT_S,
    OF_ALL,
    OF_TENANT,
    PERIOD_FIRST_S,
    PERIOD_MAX_S,
    PROBE_LEASE_S,
    PROBE_LOOK_S,
    TENANTS_MIN,
    WINDOW_S,
    Breaker,
    Scope,
    State,
    abandoned,
    failed,
    limits_of,
    period_s,
    probing,
    succeeded,
)

NOW = 1_000_000.0


def failing(count, *, tenants=("ten_a",), limits=OF_TENANT, now=NOW, breaker=None):
    """Fail so often at one instant, the tenants taking turns."""
    for number in range(count):
        breaker = failed(breaker, tenants[number % len(tenants)], f"run_{number}", now, limits)
    return breaker


OPENED = failing(FAILURES_MAX)
HALF_OPEN_AT = NOW + PERIOD_FIRST_S
PROBED = probing(OPENED, "run_p", HALF_OPEN_AT)


def test_it_opens_with_the_last_of_so_many_failures_in_a_row_and_not_before():
    assert failing(FAILURES_MAX - 1).state(NOW) is State.CLOSED
    assert OPENED.state(NOW) is State.OPEN
    assert OPENED.wait_s(NOW, "run_x") == PERIOD_FIRST_S


def test_a_success_between_failures_keeps_it_closed():
    breaker = failing(FAILURES_MAX - 1)
    assert succeeded(breaker, "run_x") is None
    assert failing(FAILURES_MAX - 1, breaker=None).state(NOW) is State.CLOSED


def test_failures_that_lie_far_apart_are_not_in_a_row():
    breaker = failing(FAILURES_MAX - 1)
    late = failed(breaker, "ten_a", "run_x", NOW + WINDOW_S + 1, OF_TENANT)
    assert (late.failures, late.state(NOW + WINDOW_S + 1)) == (1, State.CLOSED)
    soon = failed(breaker, "ten_a", "run_x", NOW + WINDOW_S - 1, OF_TENANT)
    assert soon.state(NOW + WINDOW_S - 1) is State.OPEN


def test_one_tenants_failures_do_not_open_a_whole_runtime_however_many():
    assert failing(100, limits=OF_ALL).state(NOW) is State.CLOSED
    two = ("ten_a", "ten_b")
    assert failing(100, tenants=two, limits=OF_ALL).state(NOW) is State.CLOSED


def test_failures_of_several_tenants_open_a_whole_runtime():
    tenants = tuple(f"ten_{n}" for n in range(TENANTS_MIN))
    assert failing(FAILURES_OF_ALL_MAX - 1, tenants=tenants, limits=OF_ALL).state(NOW) is State.CLOSED
    assert failing(FAILURES_OF_ALL_MAX, tenants=tenants, limits=OF_ALL).state(NOW) is State.OPEN


@pytest.mark.parametrize(("after_s", "state"), [(0.0, State.OPEN), (0.99, State.OPEN), (1.0, State.HALF_OPEN)])
def test_it_is_half_open_when_its_period_is_over(after_s, state):
    assert OPENED.state(NOW + after_s) is state


@pytest.mark.parametrize(("count", "seconds"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (1000, 10.0)])
def test_the_period_doubles_up_to_its_bound(count, seconds):
    assert period_s(count) == seconds


def test_one_probe_at_a_time_has_the_lease():
    assert probing(OPENED, "run_p", NOW) is None, "not before the period is over"
    assert probing(PROBED, "run_q", HALF_OPEN_AT) is None
    assert probing(PROBED, "run_p", HALF_OPEN_AT) == PROBED, "asked again after a lost answer"
    assert probing(None, "run_p", NOW) is None


def test_a_prober_that_died_is_not_waited_for_beyond_its_lease():
    after = HALF_OPEN_AT + PROBE_LEASE_S
    assert probing(PROBED, "run_q", after - 0.01) is None
    taken = probing(PROBED, "run_q", after)
    assert taken is not None
    assert taken.probe == "run_q"
    assert failed(taken, "ten_a", "run_p", after, OF_TENANT) == taken, "the late one's failure counts no more"


def test_while_another_probes_asking_again_soon_is_worth_it():
    assert PROBED.wait_s(HALF_OPEN_AT, "run_q") == PROBE_LOOK_S
    assert PROBED.wait_s(HALF_OPEN_AT + PROBE_LEASE_S - 0.1, "run_q") == pytest.approx(0.1)
    assert PROBED.wait_s(HALF_OPEN_AT, "run_p") == 0.0


def test_the_probes_success_closes_it_and_nobody_elses():
    assert succeeded(PROBED, "run_p") is None
    assert succeeded(PROBED, "run_old") == PROBED
    assert succeeded(OPENED, "run_old") == OPENED


def test_the_probes_failure_opens_it_for_longer_and_nobody_elses_does():
    again = failed(PROBED, "ten_a", "run_p", HALF_OPEN_AT + 1, OF_TENANT)
    assert (again.open_count, again.probe, again.open_time) == (2, "", NOW)
    assert again.wait_s(HALF_OPEN_AT + 1, "run_x") == 2.0
    assert failed(PROBED, "ten_a", "run_old", HALF_OPEN_AT, OF_TENANT) == PROBED
    assert failed(OPENED, "ten_a", "run_old", NOW, OF_TENANT) == OPENED


def test_a_probe_that_found_out_nothing_makes_room_at_once():
    freed = abandoned(PROBED, "run_p")
    assert freed is not None
    assert probing(freed, "run_q", HALF_OPEN_AT) is not None
    assert abandoned(PROBED, "run_q") == PROBED
    assert abandoned(None, "run_q") is None
    counted = failing(1)
    assert abandoned(counted, "run_0") == counted, "what the request caused does not count either way"


def test_it_is_remembered_as_long_as_it_matters():
    assert failing(1).kept_s(NOW) == WINDOW_S
    assert OPENED.kept_s(NOW) == KEPT_S
    assert OPENED.kept_s(NOW + 2 * KEPT_S) == 0.0


@pytest.mark.parametrize(
    "reason",
    [
        Reason.MODEL_AUTH, Reason.MODEL_QUOTA, Reason.MODEL_CONTEXT_OVERFLOW, Reason.MODEL_REQUEST_REFUSED,
        Reason.MODEL_ROLE_ORDER, Reason.OUTPUT_TOO_LARGE, Reason.RUN_TIMEOUT, Reason.RUN_TERMINAL,
        Reason.FIELD_INVALID, Reason.CAPABILITY_MISSING, Reason.INTERNAL, Reason.DRAINING,
    ],
)  # fmt: skip
def test_what_the_request_or_a_person_caused_does_not_speak_against_a_runtime(reason):
    assert reason not in AGAINST


def test_each_reason_that_speaks_against_a_runtime_says_for_whom_and_why():
    assert all(why.endswith(".") for _, why in AGAINST.values())
    assert AGAINST[Reason.MODEL_RATE_LIMITED][0] is Scope.TENANT, "limits are kept per credential"
    assert AGAINST[Reason.QUEUE_FULL][0] is Scope.TENANT, "another tenant may have its own process"
    assert AGAINST[Reason.MODEL_UNAVAILABLE][0] is Scope.RUNTIME


def test_a_runtime_without_room_for_a_tenant_is_left_sooner_than_one_that_fails():
    once = failed(None, "ten_a", "run_a", NOW, limits_of(Reason.QUEUE_FULL, of_all=False))
    assert once.state(NOW) is State.CLOSED, "once may be chance"
    assert failed(once, "ten_a", "run_a", NOW + 2, limits_of(Reason.QUEUE_FULL, of_all=False)).open_count == 1
    assert failed(once, "ten_a", "run_a", NOW + 2, limits_of(Reason.MODEL_TIMEOUT, of_all=False)).open_count == 0
    assert limits_of(Reason.QUEUE_FULL, of_all=True) == limits_of(Reason.MODEL_TIMEOUT, of_all=True) == OF_ALL


BREAKERS = st.none() | st.builds(
    Breaker,
    failures=st.integers(0, FAILURES_MAX - 1),
    open_count=st.integers(0, 50),
    probe_time=st.floats(NOW - 50, NOW + PERIOD_MAX_S),
    probe=st.sampled_from(["", "run_a", "run_b"]),
    probe_until=st.floats(NOW - 50, NOW + PROBE_LEASE_S),
    heard=st.floats(NOW - 100, NOW),
)


@given(BREAKERS, st.sampled_from(["run_a", "run_b"]))
def test_who_need_not_wait_is_let_through_and_who_must_is_not(breaker, run_id):
    known = breaker or Breaker()
    if known.state(NOW) is State.CLOSED:
        assert known.wait_s(NOW, run_id) == 0.0
    else:
        assert (known.wait_s(NOW, run_id) == 0.0) == (probing(known, run_id, NOW) is not None)


@given(BREAKERS)
def test_nobody_ever_waits_longer_than_the_longest_period(breaker):
    again = failed(breaker, "ten_a", "run_a", NOW, OF_TENANT)
    assert 0.0 <= again.wait_s(NOW, "run_x") <= PERIOD_MAX_S


class Probing(RuleBasedStateMachine):
    """Runs come, probe, end or die while time passes; the model remembers who was let through."""

    @initialize()
    def begin(self):
        self.now, self.breaker, self.count = NOW, failing(FAILURES_MAX), 0
        self.leases: dict[str, float] = {}

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, PROBE_LEASE_S, 100.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def a_run_comes(self):
        self.count += 1
        run_id = f"run_{self.count}"
        granted = probing(self.breaker, run_id, self.now)
        if granted is not None:
            self.breaker = granted
            self.leases[run_id] = self.now + PROBE_LEASE_S

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["failed", "abandoned", "succeeded", "died"]))
    def a_probe_ends(self, data, how):
        run_id = data.draw(st.sampled_from(sorted(self.leases)))
        before = self.breaker
        if how == "failed":
            self.breaker = failed(self.breaker, "ten_a", run_id, self.now, OF_TENANT)
        elif how == "abandoned":
            self.breaker = abandoned(self.breaker, run_id)
        elif how == "succeeded":
            self.breaker = succeeded(self.breaker, run_id)
        if how != "died":
            del self.leases[run_id]
        if before is not None and before.probe != run_id and before.open_count:
            assert self.breaker == before, "only who holds the lease is heard"

    @precondition(lambda self: self.breaker is None)
    @rule()
    def it_fails_again(self):
        self.breaker = failing(FAILURES_MAX, now=self.now)

    @invariant()
    def at_most_one_probe_is_within_its_lease(self):
        assert sum(self.now < until for until in self.leases.values()) <= 1

    @invariant()
    def a_breaker_that_is_not_closed_lets_someone_through_within_a_bound(self):
        if self.breaker is not None and self.breaker.open_count:
            later = self.now + max(PERIOD_MAX_S, PROBE_LEASE_S)
            assert probing(self.breaker, "run_later", later) is not None


TestProbing = Probing.TestCase
TestProbing.settings = settings(max_examples=50, stateful_step_count=30)
