"""Each rule of the table, both ways, and what holds whatever the snapshot."""

from dataclasses import replace

import pytest
from deciding import BOTH, SNAPSHOTS
from deciding import RULES as PREFERRED
from hypothesis import given, settings
from retinue_kit.errors import Reason, RetinueError
from retinue_policy.domain.rules import RULES, Effect, Fired, decide
from retinue_policy.domain.snapshot import Defaults, Snapshot, Tenant

CHAT = Snapshot(kind="chat", runtimes_on=BOTH)
TASK = Snapshot(kind="extraction", runtimes_on=BOTH)
RECENT = {"session_runtime_age_s": 60.0}


def named(decision):
    return [(fired.rule, fired.effect) for fired in decision.rules]


@pytest.mark.parametrize(
    ("snapshot", "runtime", "rules"),
    [
        (CHAT, "openclaw", ["chat_prefers_openclaw"]),
        (TASK, "light", ["tasks_prefer_light"]),
        (replace(CHAT, requested_runtime=""), "openclaw", ["chat_prefers_openclaw"]),
        # Falling back
        (replace(CHAT, runtimes_on=("light",)), "light", ["chat_prefers_openclaw", "openclaw_is_off"]),
        (replace(TASK, runtimes_on=("openclaw",)), "openclaw", ["tasks_prefer_light", "light_is_off"]),
        # The tenant's preference
        (replace(CHAT, tenant=Tenant(preferred_runtime="light")), "light", ["chat_prefers_openclaw", "tenant_prefers"]),
        (replace(TASK, tenant=Tenant(preferred_runtime="openclaw")), "light", ["tasks_prefer_light"]),
        (
            replace(CHAT, tenant=Tenant(preferred_runtime="gone"), runtimes_on=("light", "openclaw")),
            "openclaw",
            ["chat_prefers_openclaw", "tenant_prefers", "gone_is_off"],
        ),
        # Stickiness
        (
            replace(CHAT, session_runtime="light", **RECENT),
            "light",
            ["chat_prefers_openclaw", "session_is_sticky"],
        ),
        (replace(CHAT, session_runtime="light", session_runtime_age_s=900.0), "light", None),
        (replace(CHAT, session_runtime="light", session_runtime_age_s=900.1), "openclaw", ["chat_prefers_openclaw"]),
        (replace(CHAT, session_runtime="light"), "openclaw", ["chat_prefers_openclaw"]),
        (
            replace(CHAT, session_runtime="openclaw", runtimes_on=("light",), **RECENT),
            "light",
            ["chat_prefers_openclaw", "openclaw_is_off"],
        ),
        (
            replace(CHAT, session_runtime="openclaw", tenant=Tenant(preferred_runtime="light"), **RECENT),
            "openclaw",
            ["chat_prefers_openclaw", "tenant_prefers", "session_is_sticky"],
        ),
        # What the client asks for
        (replace(CHAT, requested_runtime="light"), "light", ["chat_prefers_openclaw", "client_asks"]),
        (replace(TASK, requested_runtime="openclaw"), "openclaw", ["tasks_prefer_light", "client_asks"]),
        (
            replace(CHAT, requested_runtime="openclaw", session_runtime="light", **RECENT),
            "openclaw",
            ["chat_prefers_openclaw", "session_is_sticky", "client_asks"],
        ),
        # An open tool call
        (
            replace(CHAT, session_runtime="light", session_runtime_age_s=9000.0, tool_transaction_open=True),
            "light",
            ["chat_prefers_openclaw", "tool_transaction_open"],
        ),
        (
            replace(CHAT, session_runtime="light", requested_runtime="light", tool_transaction_open=True),
            "light",
            ["chat_prefers_openclaw", "client_asks", "tool_transaction_open"],
        ),
        (replace(CHAT, tool_transaction_open=True), "openclaw", ["chat_prefers_openclaw"]),
        # A runtime that fails
        (replace(CHAT, failing={"openclaw": 2.0}), "light", ["chat_prefers_openclaw", "openclaw_is_failing"]),
        (replace(CHAT, failing={"light": 2.0}), "openclaw", ["chat_prefers_openclaw"]),
        (replace(TASK, failing={"light": 2.0}), "openclaw", ["tasks_prefer_light", "light_is_failing"]),
        (
            replace(CHAT, session_runtime="light", failing={"light": 2.0}, **RECENT),
            "openclaw",
            ["chat_prefers_openclaw", "session_is_sticky", "light_is_failing"],
        ),
        (
            replace(CHAT, requested_runtime="light", failing={"openclaw": 2.0}),
            "light",
            ["chat_prefers_openclaw", "client_asks"],
        ),
        # A runtime that can take no runs
        (replace(CHAT, away={"openclaw": 1.0}), "light", ["chat_prefers_openclaw", "openclaw_is_away"]),
        (replace(CHAT, away={"light": 1.0}), "openclaw", ["chat_prefers_openclaw"]),
        (replace(TASK, away={"light": 1.0}), "openclaw", ["tasks_prefer_light", "light_is_away"]),
        (
            replace(CHAT, away={"openclaw": 1.0}, failing={"openclaw": 2.0}),
            "light",
            ["chat_prefers_openclaw", "openclaw_is_away"],
        ),
        (
            replace(CHAT, session_runtime="openclaw", away={"openclaw": 1.0}, **RECENT),
            "light",
            ["chat_prefers_openclaw", "session_is_sticky", "openclaw_is_away"],
        ),
        (
            replace(CHAT, session_runtime="light", away={"openclaw": 1.0}, **RECENT),
            "light",
            ["chat_prefers_openclaw", "session_is_sticky"],
        ),
        (
            replace(CHAT, requested_runtime="light", away={"openclaw": 1.0}),
            "light",
            ["chat_prefers_openclaw", "client_asks"],
        ),
    ],
)
def test_the_last_rule_that_fires_picks_the_runtime(snapshot, runtime, rules):
    decision = decide(snapshot)
    assert decision.runtime == runtime
    if rules is not None:
        assert [fired.rule for fired in decision.rules] == rules


@pytest.mark.parametrize(
    ("snapshot", "reason", "rule"),
    [
        (
            replace(CHAT, requested_runtime="hermes"),
            Reason.RUNTIME_UNAVAILABLE,
            "requested_runtime_unknown",
        ),
        (
            replace(CHAT, requested_runtime="openclaw", runtimes_on=("light",)),
            Reason.RUNTIME_UNAVAILABLE,
            "requested_runtime_off",
        ),
        (
            replace(CHAT, requested_runtime="openclaw", session_runtime="light", tool_transaction_open=True),
            Reason.TOOL_TRANSACTION_OPEN,
            "tool_transaction_open",
        ),
        (
            replace(CHAT, session_runtime="openclaw", runtimes_on=("light",), tool_transaction_open=True),
            Reason.RUNTIME_UNAVAILABLE,
            "tool_transaction_runtime_off",
        ),
    ],
)
def test_a_refusal_names_its_rule_and_the_runtime(snapshot, reason, rule):
    with pytest.raises(RetinueError) as caught:
        decide(snapshot)
    assert caught.value.reason is reason
    assert caught.value.metadata["rule"] == rule
    assert caught.value.metadata["runtime"] == (snapshot.asked or snapshot.bound)
    assert "{" not in caught.value.message


@pytest.mark.parametrize(
    ("snapshot", "rule", "runtime", "wait_s"),
    [
        (
            replace(CHAT, requested_runtime="light", failing={"light": 2.0}),
            "requested_runtime_failing",
            "light",
            2.0,
        ),
        (
            replace(CHAT, session_runtime="light", tool_transaction_open=True, failing={"light": 3.0}),
            "tool_transaction_runtime_failing",
            "light",
            3.0,
        ),
        (replace(CHAT, failing={"light": 3.0, "openclaw": 2.0}), "every_runtime_failing", "openclaw,light", 2.0),
        (replace(CHAT, runtimes_on=("light",), failing={"light": 0.5}), "every_runtime_failing", "light", 0.5),
        (
            replace(CHAT, requested_runtime="openclaw", away={"openclaw": 1.0}),
            "requested_runtime_away",
            "openclaw",
            1.0,
        ),
        (
            replace(CHAT, requested_runtime="openclaw", away={"openclaw": 1.0}, failing={"openclaw": 4.0}),
            "requested_runtime_away",
            "openclaw",
            4.0,
        ),
        (
            replace(CHAT, session_runtime="openclaw", tool_transaction_open=True, away={"openclaw": 1.0}),
            "tool_transaction_runtime_away",
            "openclaw",
            1.0,
        ),
        (replace(CHAT, away={"light": 1.0, "openclaw": 1.0}), "every_runtime_away", "openclaw,light", 1.0),
        (replace(CHAT, runtimes_on=("openclaw",), away={"openclaw": 1.0}), "every_runtime_away", "openclaw", 1.0),
        (
            replace(CHAT, away={"openclaw": 1.0}, failing={"light": 3.0}),
            "every_runtime_failing",
            "openclaw,light",
            1.0,
        ),
    ],
)
def test_with_no_runtime_that_works_the_refusal_says_when_to_ask_again(snapshot, rule, runtime, wait_s):
    with pytest.raises(RetinueError) as caught:
        decide(snapshot)
    assert caught.value.reason is Reason.RUNTIME_UNAVAILABLE
    assert caught.value.metadata == {"rule": rule, "runtime": runtime}
    assert caught.value.retry_after_s == wait_s
    assert "{" not in caught.value.message


def test_what_is_off_or_unknown_is_not_worth_asking_for_again():
    with pytest.raises(RetinueError) as caught:
        decide(replace(CHAT, requested_runtime="hermes", failing={"light": 2.0}))
    assert caught.value.retry_after_s is None


def test_a_fallback_says_so():
    decision = decide(replace(CHAT, runtimes_on=("light",)))
    expected = Fired(
        "openclaw_is_off",
        Effect.FALL_BACK,
        "Preferred is openclaw, which is off in this deployment: one that is on takes it.",
    )
    assert decision.rules[-1] == expected


@pytest.mark.parametrize(
    ("session", "requested", "switches"),
    [("", "light", False), ("light", "light", False), ("light", "openclaw", True), ("openclaw", "light", True)],
)
def test_a_switch_is_a_change_from_a_runtime_that_was_used(session, requested, switches):
    assert decide(replace(CHAT, session_runtime=session, requested_runtime=requested)).switches_runtime is switches


def test_limits_are_the_deployments_unless_the_tenant_has_its_own():
    usual = decide(CHAT)
    assert (usual.limits.concurrent_run_count, usual.limits.weight) == (64, 1.0)
    assert (usual.limits.attempt_count, usual.limits.run_time_s) == (3, 600.0)
    assert usual.limits.output_size_bytes == 1024 * 1024
    assert not any(effect is Effect.LIMIT for _, effect in named(usual))
    own = decide(replace(CHAT, tenant=Tenant(concurrent_run_count=2, weight=3.5)))
    assert (own.limits.concurrent_run_count, own.limits.weight) == (2, 3.5)
    assert named(own)[:2] == [("tenant_limits_runs", Effect.LIMIT), ("tenant_has_weight", Effect.LIMIT)]
    assert decide(replace(CHAT, defaults=Defaults(concurrent_run_count=5))).limits.concurrent_run_count == 5


CELLS = frozenset({"pro", "team"})


@pytest.mark.parametrize(
    ("snapshot", "isolation"),
    [
        (replace(CHAT, tenant=Tenant(plan="pro"), cell_plans=CELLS), "cell"),
        (replace(CHAT, tenant=Tenant(plan="team"), cell_plans=CELLS), "cell"),
        (replace(CHAT, tenant=Tenant(plan="free"), cell_plans=CELLS), "shared"),
        (replace(CHAT, tenant=Tenant(plan=""), cell_plans=CELLS), "shared"),
        (replace(CHAT, tenant=Tenant(plan="pro")), "shared"),
        (replace(TASK, tenant=Tenant(plan="pro"), cell_plans=CELLS), "shared"),
        (replace(TASK, tenant=Tenant(plan="pro"), cell_plans=CELLS, requested_runtime="openclaw"), "cell"),
        (replace(CHAT, tenant=Tenant(plan="pro"), cell_plans=CELLS, runtimes_on=("light",)), "shared"),
    ],
)
def test_a_plan_gives_a_cell_where_the_runtime_has_cells(snapshot, isolation):
    decision = decide(snapshot)
    assert decision.isolation == isolation
    given = [fired for fired in decision.rules if fired.rule == "plan_gives_cell"]
    reason = f"The plan {snapshot.tenant.plan} shares no runtime process."
    assert given == ([Fired("plan_gives_cell", Effect.REQUIRE, reason)] if isolation == "cell" else [])
    assert decision.rules[-1].rule != "plan_gives_cell", "the last rule is the one that decided the runtime"


def test_the_agents_model_is_passed_on():
    assert decide(replace(CHAT, tenant=Tenant(model="fast"))).model == "fast"
    assert decide(CHAT).model == ""


def test_every_rule_of_the_table_has_a_name_and_a_reason():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(rule.reason.endswith(".") for rule in RULES)


EXAMPLES = settings(max_examples=60)
"""Others each time: what these leave out, the next run finds."""


def decided(snapshot, rules):
    return None if refused(snapshot, rules) else decide(snapshot, rules)


def refused(snapshot, rules):
    try:
        decide(snapshot, rules)
    except RetinueError as error:
        if error.reason in (Reason.RUNTIME_UNAVAILABLE, Reason.TOOL_TRANSACTION_OPEN):
            return error
        raise
    return None


@EXAMPLES
@given(SNAPSHOTS, PREFERRED)
def test_a_runtime_that_is_off_is_never_picked(snapshot, rules):
    decision = decided(snapshot, rules)
    assert decision is None or decision.runtime in snapshot.runtimes_on


@EXAMPLES
@given(SNAPSHOTS, PREFERRED)
def test_an_open_tool_call_never_sees_a_switch(snapshot, rules):
    decision = decided(snapshot, rules)
    if decision is not None and snapshot.tool_transaction_open:
        assert not decision.switches_runtime


@EXAMPLES
@given(SNAPSHOTS, PREFERRED)
def test_what_is_asked_for_is_given_or_refused(snapshot, rules):
    decision = decided(snapshot, rules)
    if decision is not None and snapshot.asked:
        assert decision.runtime == snapshot.asked


@EXAMPLES
@given(SNAPSHOTS, PREFERRED)
def test_leaving_the_choice_open_is_refused_only_if_a_tool_call_lost_its_runtime_or_none_is_usable(snapshot, rules):
    snapshot = replace(snapshot, requested_runtime="auto")
    lost = bool(snapshot.bound) and snapshot.bound not in snapshot.usable
    assert (decided(snapshot, rules) is None) == (lost or not snapshot.usable)


@EXAMPLES
@given(SNAPSHOTS, PREFERRED)
def test_a_runtime_that_fails_or_is_away_is_never_picked(snapshot, rules):
    decision = decided(snapshot, rules)
    assert decision is None or decision.runtime in snapshot.usable


@EXAMPLES
@given(SNAPSHOTS, PREFERRED)
def test_a_refusal_that_passes_says_when_and_no_sooner_than_a_runtime_may_be_asked_again(snapshot, rules):
    error = refused(snapshot, rules)
    if error is not None and error.retry_after_s is not None:
        assert error.retry_after_s == min(snapshot.wait_s(runtime) for runtime in snapshot.insisted)
        assert error.retry_after_s > 0


@EXAMPLES
@given(SNAPSHOTS, PREFERRED)
def test_a_cell_is_given_by_plan_alone_and_never_for_a_runtime_without_cells(snapshot, rules):
    decision = decided(snapshot, rules)
    if decision is not None:
        expected = decision.runtime == "openclaw" and snapshot.tenant.plan in snapshot.cell_plans
        assert (decision.isolation == "cell") is expected
