"""Rules for runtimes over gRPC: changed while it serves, tried out on what was decided before, and beside what runtimes
say of themselves."""

from datetime import timedelta

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue.policy.v1 import policy_service_pb2_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_policy.__main__ import assemble
from retinue_policy.config import Settings
from retinue_policy.rule_files import bundled

CANARY = '[[rollout]]\nname = "canary"\nruntime = "light"\npercent = 100\n'
ROLLED_BACK = CANARY + 'state = "rolled_back"\n'


class Directory(directory_service_pb2_grpc.DirectoryServiceServicer):
    """A directory in which every tenant pays, and has a model of its own."""

    async def GetTenant(self, request, context):
        tenant = directory_service_pb2.Tenant(tenant_id=request.tenant_id, plan="pro")
        tenant.agent.model = "large"
        return directory_service_pb2.GetTenantResponse(tenant=tenant)


class Adapter(adapter_grpc.RuntimeAdapterServiceServicer):
    """A runtime-adapter whose OpenClaw has as many runs waiting as a test says."""

    def __init__(self):
        self.waiting = 0

    async def DescribeRuntimes(self, request, context):
        openclaw = adapter_pb.Runtime(
            name="openclaw", available=True, tools=True, models=["small", "large"], window_tokens=[8_000, 200_000],
            slot_count=2, busy_count=2, waiting_count=self.waiting,
        )  # fmt: skip
        light = adapter_pb.Runtime(name="light", available=True, models=["small"], window_tokens=[8_000])
        return adapter_pb.DescribeRuntimesResponse(runtimes=[openclaw, light])


@pytest.fixture
def adapter():
    return Adapter()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tools.toml").write_text(bundled("tools.toml"))
    (tmp_path / "tools.cedar").write_text(bundled("tools.cedar"))
    return tmp_path


@pytest.fixture
async def settings(serve, run_dir, redis_url, folder, adapter):
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    directory = await serve([Service(add, Directory(), "retinue.directory.v1.DirectoryService")])
    add = adapter_grpc.add_RuntimeAdapterServiceServicer_to_server
    beside = await serve([Service(add, adapter, "retinue.runtime_adapter.v1.RuntimeAdapterService")])
    return Settings(
        f"unix:{run_dir}/policy.sock", directory, redis_url, runtimes="openclaw,light", policy_dir=str(folder),
        runtime_adapter_address=beside,
    )  # fmt: skip


@pytest.fixture
async def policy(assembled, peer, settings):
    return peer("policy", await assembled(assemble, settings))


async def decide(policy, **fields):
    fields = {"tenant_id": "ten_a", "run_id": "run_a", "kind": "chat", "attempt": 1} | fields
    stub = policy_service_pb2_grpc.PolicyServiceStub(policy.channel)
    return (await policy.call(stub.Decide, pb.DecideRequest(**fields))).decision


async def replay(policy, rules, *decisions):
    stub = policy_service_pb2_grpc.PolicyServiceStub(policy.channel)
    stored = [
        pb.ReplayedDecision(tenant_id="ten_a", run_id=f"run_{n}", decision=each) for n, each in enumerate(decisions)
    ]
    return await policy.call(stub.ReplayDecisions, pb.ReplayDecisionsRequest(rules_toml=rules, decisions=stored))


def stored(decision):
    """A decision as a worker stores it."""
    kept = Struct()
    kept.update(
        {
            "runtime": decision.runtime,
            "isolation": decision.isolation,
            "rules": [{"rule": each.rule, "effect": each.effect, "reason": each.reason} for each in decision.rules],
            "snapshot": json_format.MessageToDict(decision.snapshot),
        }
    )
    return kept


def rules_of(decision):
    return [each.rule for each in decision.rules]


async def test_a_rollout_begins_and_is_rolled_back_while_policy_serves_and_a_bad_file_changes_nothing(
    policy, folder, eventually
):
    lately = {"session_runtime": "light", "session_runtime_age": timedelta(minutes=1)}
    assert rules_of(await decide(policy)) == ["plan_gives_cell", "chat_prefers_openclaw"]

    async def fires(rule, **fields):
        decision = await decide(policy, **fields)
        return decision if rule in rules_of(decision) else None

    (folder / "runtimes.toml").write_text(CANARY)
    begun = await eventually(lambda: fires("rollout_canary"))
    assert (begun.runtime, begun.isolation) == ("light", "shared")
    # One after the other in the same look: what the bad tools do not hold up, the good rollback shows.
    (folder / "tools.toml").write_text("[")
    (folder / "runtimes.toml").write_text(ROLLED_BACK)
    ended = await eventually(lambda: fires("rollout_canary_is_rolled_back", **lately))
    assert (ended.runtime, ended.switches_runtime) == ("openclaw", True)
    bound = await decide(policy, tool_transaction_open=True, **lately)
    assert (bound.runtime, bound.switches_runtime) == ("light", False), "never in the middle of a tool call"


async def test_a_decision_carries_what_it_was_made_on_and_can_be_replayed(policy, adapter, eventually):
    async def knows():
        decision = await decide(policy)
        return decision if decision.abilities else None

    usual = await eventually(knows)
    assert [(each.runtime, each.tools, each.window_tokens) for each in usual.abilities] == [
        ("openclaw", True, 200_000),
        ("light", False, 0),
    ]
    snapshot = json_format.MessageToDict(usual.snapshot)
    assert (snapshot["version"], snapshot["plan"], len(snapshot["rules"])) == (1, "pro", 12)
    assert snapshot["load"]["openclaw"] == {"slots": 2, "busy": 2, "waiting": 0}
    adapter.waiting = 33

    async def crowded():
        decision = await decide(policy)
        return decision if decision.runtime == "light" else None

    moved = await eventually(crowded)
    assert rules_of(moved) == ["chat_prefers_openclaw", "openclaw_is_crowded"]
    assert rules_of(await decide(policy, requested_runtime="openclaw"))[-1] == "client_asks"
    # What was decided then is decided again, whatever the runtimes say now.
    replayed = await replay(policy, bundled("runtimes.toml"), stored(usual), stored(moved), Struct())
    assert (list(replayed.differences), replayed.same_count, replayed.skipped_count) == ([], 2, 1)
    replayed = await replay(policy, CANARY + "[load]\nwaiting_max = 100\n", stored(usual), stored(moved))
    (difference,) = replayed.differences
    assert (difference.run_id, difference.former_runtime, difference.runtime) == ("run_0", "openclaw", "light")
    assert (difference.rule, difference.isolation) == ("rollout_canary", "cell → shared")
    with pytest.raises(RetinueError) as caught:
        await replay(policy, "[[prefer]]")
    assert (caught.value.reason, caught.value.metadata["field"]) == (Reason.FIELD_INVALID, "rules_toml")


async def test_with_a_file_that_cannot_be_followed_it_does_not_start(assembled, settings, folder):
    (folder / "runtimes.toml").write_text("[[rollout]]\n")
    with pytest.raises(SettingError, match=r"^RETINUE_POLICY_DIR='.*': runtimes\.toml: "):
        await assembled(assemble, settings)
