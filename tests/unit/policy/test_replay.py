"""Decisions that are made once more: the same by the same rules, and by others what differs."""

import json

import pytest
from deciding import RULES, SNAPSHOTS, TENANTS
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from retinue_kit.errors import Reason, RetinueError
from retinue_policy.domain.preferences import RuntimeRules
from retinue_policy.domain.rules import decide
from retinue_policy.domain.snapshot import Load, Snapshot, Tenant
from retinue_policy.operations import snapshots
from retinue_policy.operations.replay import AT_ONCE, Replaying, Stored
from retinue_policy.runtimes_toml import parse
from retinue_policy.structs import plain

LIGHT_CHATS = '[[prefer]]\nruntime = "light"\nkinds = ["chat"]\n'
CHAT = Snapshot(
    kind="chat",
    runtimes_on=("openclaw", "light"),
    session_runtime="openclaw",
    session_runtime_age_s=2000.5,
    tenant_id="ten_a",
    tenant=Tenant(plan="pro"),
    load={"light": Load(8, 2, 1)},
    cell_plans=frozenset({"pro"}),
)


def kept(snapshot, rules=None, /, **more):
    """A decision as it comes back from where it was stored: by a Struct, as JSON, and by a Struct again."""
    rules = rules or RuntimeRules(name="abc")
    decision = decide(snapshot, rules)
    on_the_wire = Struct()
    on_the_wire.update(snapshots.written(snapshot, rules.name))
    stored = {
        "runtime": decision.runtime,
        "model": decision.model,
        "isolation": decision.isolation,
        "rules": [{"rule": each.rule, "effect": each.effect, "reason": each.reason} for each in decision.rules],
        "snapshot": json.loads(json.dumps(plain(on_the_wire))),
    }
    again = Struct()
    again.update(stored | more)
    return Stored(snapshot.tenant_id, "run_a", plain(again))


async def replay(rules_toml, *stored):
    return await Replaying(parse).replay(rules_toml, stored)


@settings(max_examples=150)
@given(SNAPSHOTS, RULES)
async def test_a_decision_replayed_by_the_rules_it_was_made_by_differs_nowhere(snapshot, rules):
    try:
        stored = kept(snapshot, rules)
    except RetinueError:
        return  # what was refused is not stored
    replayed = await Replaying(lambda _: rules).replay("", [stored])
    assert (replayed.differences, replayed.same_count, replayed.skipped_count) == ([], 1, 0)


@settings(max_examples=100)
@given(SNAPSHOTS)
def test_a_snapshot_comes_back_with_all_that_the_runtime_was_decided_on(snapshot):
    on_the_wire = Struct()
    on_the_wire.update(snapshots.written(snapshot, "abc"))
    found = snapshots.read(plain(on_the_wire), snapshot.tenant_id)
    for name in Snapshot.__slots__:
        if name in ("failing", "away"):
            assert getattr(found, name).keys() == getattr(snapshot, name).keys()
        elif name not in ("tenant", "defaults"):
            assert getattr(found, name) == getattr(snapshot, name), name
    assert found.tenant.plan == snapshot.tenant.plan
    assert found.tenant.preferred_runtime == snapshot.tenant.preferred_runtime


def test_names_in_a_snapshot_are_kept_for_good_and_it_holds_nobodys_text():
    assert snapshots.written(CHAT, "abc") == {
        "version": 1,
        "rules": "abc",
        "kind": "chat",
        "runtimes_on": ["openclaw", "light"],
        "requested_runtime": "auto",
        "session_runtime": "openclaw",
        "session_runtime_age_s": 2000.5,
        "tool_transaction_open": False,
        "sticky_window_s": 900.0,
        "plan": "pro",
        "preferred_runtime": "",
        "failing": {},
        "away": {},
        "load": {"light": {"slots": 8, "busy": 2, "waiting": 1}},
        "cell_plans": ["pro"],
    }


async def test_by_other_rules_what_differs_is_told_with_both_rules_and_the_rest_is_counted():
    task = Snapshot(kind="sync", runtimes_on=("openclaw", "light"), tenant_id="ten_b")
    replayed = await replay(LIGHT_CHATS, kept(task), kept(CHAT))
    assert (replayed.same_count, replayed.skipped_count) == (1, 0)
    (difference,) = replayed.differences
    assert (difference.tenant_id, difference.run_id) == ("ten_a", "run_a")
    assert (difference.former_runtime, difference.runtime) == ("openclaw", "light")
    assert (difference.former_rule, difference.rule) == ("chat_prefers_openclaw", "operator_prefers")
    assert difference.reason == "The operator's preference number 1 is for runs like this one."
    assert difference.isolation == "cell → shared"


async def test_what_would_be_refused_has_no_runtime_and_its_reason():
    gone = snapshots.written(CHAT, "abc") | {"away": {"openclaw": 1.0, "light": 1.0}}
    replayed = await replay("", kept(CHAT, snapshot=gone))
    (difference,) = replayed.differences
    assert (difference.runtime, difference.rule, difference.isolation) == ("", "every_runtime_away", "")
    assert difference.reason == "No runtime can take the run at present."


@pytest.mark.parametrize(
    "changed",
    [
        {"snapshot": None},
        {"snapshot": {}},
        {"snapshot": snapshots.written(CHAT, "") | {"version": 2}},
        {"snapshot": {"version": 1}},
        {"snapshot": snapshots.written(CHAT, "") | {"runtimes_on": []}},
        {"snapshot": snapshots.written(CHAT, "") | {"load": {"light": {"slots": "many"}}}},
        {"snapshot": snapshots.written(CHAT, "") | {"load": {"light": {"slots": float("inf")}}}},
        {"rules": "none"},
    ],
    ids=["none", "empty", "newer", "bare", "no_runtimes", "words", "endless", "no_rules"],
)
async def test_what_cannot_be_read_is_skipped_and_counted(changed):
    replayed = await replay("", kept(CHAT, **changed), kept(CHAT))
    assert (replayed.differences, replayed.same_count, replayed.skipped_count) == ([], 1, 1)


async def test_what_a_newer_release_added_within_a_version_is_passed_over():
    newer = snapshots.written(CHAT, "") | {"phase_of_the_moon": "full"}
    assert (await replay("", kept(CHAT, snapshot=newer))).same_count == 1


async def test_rules_that_cannot_be_followed_are_refused_by_the_field_they_came_in():
    with pytest.raises(RetinueError) as caught:
        await replay("[[prefer]]", kept(CHAT))
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.metadata == {"field": "rules_toml"}
    assert caught.value.message.startswith("rules_toml: runtimes.toml: ")


async def test_a_file_is_read_once_for_all_of_its_pages_and_order_is_kept():
    read = []

    def counting(text):
        read.append(text)
        return parse(text)

    replaying = Replaying(counting)
    page = [
        kept(Snapshot(kind="chat", runtimes_on=("openclaw", "light"), tenant_id=TENANTS[n % 3]))
        for n in range(2 * AT_ONCE)
    ]
    for _ in range(2):
        replayed = await replaying.replay(LIGHT_CHATS, page)
        assert [each.tenant_id for each in replayed.differences] == [each.tenant_id for each in page]
    assert read == [LIGHT_CHATS]
