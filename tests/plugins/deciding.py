"""Snapshots that policy may decide on, and what an operator may prefer, for tests of what holds whatever they are."""

from hypothesis import strategies as st
from retinue_policy.domain.preferences import Preference, Rollout, Runs, RuntimeRules, Stage, names_of
from retinue_policy.domain.snapshot import Load, Snapshot, Tenant

BOTH = ("openclaw", "light")
KINDS = ("chat", "extraction", "sync")
PLANS = ("", "free", "pro")
TENANTS = ("ten_a", "ten_b", "ten_c")

_one = st.sampled_from(BOTH)
_named = st.sampled_from(["", "openclaw", "light", "other"])
_runs = st.builds(
    Runs,
    tenants=st.lists(st.sampled_from([*TENANTS, "ten_*", "*_a"]), max_size=2).map(names_of),
    plans=st.lists(st.sampled_from(PLANS[1:]), max_size=1).map(names_of),
    kinds=st.lists(st.sampled_from([*KINDS, "*"]), max_size=2).map(names_of),
)

SNAPSHOTS = st.builds(
    Snapshot,
    kind=st.sampled_from(KINDS),
    runtimes_on=st.lists(_one, min_size=1, unique=True).map(tuple),
    requested_runtime=st.sampled_from(["", "auto", "openclaw", "light", "other"]),
    session_runtime=_named,
    session_runtime_age_s=st.none() | st.floats(0, 2000),
    tool_transaction_open=st.booleans(),
    sticky_window_s=st.floats(0, 2000),
    tenant_id=st.sampled_from(TENANTS),
    tenant=st.builds(
        Tenant,
        preferred_runtime=_named,
        concurrent_run_count=st.integers(0, 100),
        plan=st.sampled_from(PLANS),
    ),
    failing=st.dictionaries(_one, st.floats(0.01, 10.0)),
    away=st.dictionaries(_one, st.floats(0.01, 10.0)),
    load=st.dictionaries(_one, st.builds(Load, *[st.integers(0, 5)] * 3)),
    cell_plans=st.sampled_from([frozenset(), frozenset({"pro"})]),
)

RULES = st.builds(
    RuntimeRules,
    preferences=st.lists(st.builds(Preference, st.just(1), _one, _runs), max_size=3).map(tuple),
    rollouts=st.lists(
        st.builds(
            Rollout,
            name=st.sampled_from(["a", "b"]),
            runtime=_one,
            percent=st.sampled_from([0.0, 50.0, 100.0]),
            stage=st.sampled_from(Stage),
            runs=_runs,
        ),
        max_size=2,
    ).map(tuple),
    sticky_window_s=st.none() | st.floats(0, 2000),
    busy_share_max=st.floats(0, 1),
    waiting_max=st.integers(0, 3),
)
