"""Decisions about tools over gRPC: what the wire says, files that change under it, and files that are wrong."""

from pathlib import Path

import pytest
from google.protobuf import struct_pb2
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.policy.v1 import policy_service_pb2, policy_service_pb2_grpc, tool_service_pb2_grpc
from retinue.policy.v1 import tool_service_pb2 as pb
from retinue_kit import tenancy
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_policy.__main__ import assemble
from retinue_policy.config import Settings
from retinue_policy.domain.tools.catalogue import BUILT_IN
from retinue_policy.operations.rulebook import BadRulesError
from retinue_policy.rule_files import RuleFiles, bundled

TOML, CEDAR = bundled("tools.toml"), bundled("tools.cedar")
SCOPE = pb.ToolScope(agent_id="agt_a", kind="chat", runtime="light", model="m")


class Directory(directory_service_pb2_grpc.DirectoryServiceServicer):
    """A directory that knows two tenants."""

    async def GetTenant(self, request, context):
        if request.tenant_id not in ("ten_a", "ten_b"):
            raise RetinueError(Reason.TENANT_NOT_FOUND, "There is no such tenant.")
        agent = directory_service_pb2.Agent(agent_id=request.tenant_id.replace("ten_", "agt_"), model="openai/x")
        tenant = directory_service_pb2.Tenant(tenant_id=request.tenant_id, agent=agent, plan="pro")
        return directory_service_pb2.GetTenantResponse(tenant=tenant)


class Asking:
    """Who asks policy."""

    def __init__(self, peer):
        self._peer = peer
        self._tools = tool_service_pb2_grpc.ToolServiceStub(peer.channel)
        self._policy = policy_service_pb2_grpc.PolicyServiceStub(peer.channel)

    async def authorize(self, tool, tenant="ten_a", scope=SCOPE, allowed=(), **arguments):
        struct = struct_pb2.Struct()
        struct.update(arguments)
        listed = [pb.AllowedTool(tool=tool, pattern=pattern) for pattern in allowed]
        request = pb.AuthorizeToolRequest(tenant_id=tenant, scope=scope, tool=tool, arguments=struct, allowed=listed)
        return await self.ask(request)

    async def ask(self, request):
        return (await self._peer.call(self._tools.AuthorizeTool, request)).decision

    async def effect(self, tool, **more):
        return (await self.authorize(tool, **more)).effect

    async def explain(self, tool="", tenant="ten_a", **scope):
        request = pb.ExplainToolsRequest(tenant_id=tenant, scope=pb.ToolScope(kind="chat", **scope), tool=tool)
        return await self._peer.call(self._tools.ExplainTools, request)

    async def decide(self, **fields):
        fields = {"tenant_id": "ten_a", "run_id": "run_a", "kind": "chat", "attempt": 1} | fields
        request = policy_service_pb2.DecideRequest(**fields)
        return (await self._peer.call(self._policy.Decide, request)).decision


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tools.toml").write_text(TOML)
    (tmp_path / "tools.cedar").write_text(CEDAR)
    return tmp_path


@pytest.fixture
async def settings(serve, run_dir, redis_url, folder):
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    directory = await serve([Service(add, Directory(), "retinue.directory.v1.DirectoryService")])
    return Settings(f"unix:{run_dir}/policy.sock", directory, redis_url, policy_dir=str(folder))


@pytest.fixture
async def policy(assembled, peer, settings):
    return Asking(peer("policy", await assembled(assemble, settings)))


async def test_a_call_is_decided_about_with_all_that_the_wire_holds(policy):
    assert await policy.effect("exec", command="ls") == "allow"
    decision = await policy.authorize("delete", path="notes", recursive=True)
    assert (decision.effect, decision.layer, decision.rule) == ("ask", "allowlist", "global.security: delete")
    assert (decision.pattern, decision.expire_s) == ("-r notes", 300)
    assert decision.summary == "Delete notes, with everything in it"
    assert await policy.effect("delete", path="notes", recursive=True, allowed=["-r notes"]) == "allow"
    assert await policy.effect("delete", path="notes", recursive=True, allowed=["notes"]) == "ask"
    assert (await policy.authorize("nonsense")).rule == "unknown"


async def test_no_cross_tenant_on_the_wire(policy):
    decision = await policy.authorize("read", scope=pb.ToolScope(agent_id="agt_b", kind="chat"))
    assert (decision.effect, decision.rule) == ("deny", "cross_tenant")
    with pytest.raises(RetinueError) as caught:
        await policy.authorize("read", tenant="ten_x")
    assert caught.value.reason is Reason.TENANT_NOT_FOUND


async def test_arguments_that_are_no_json_are_decided_about_all_the_same(policy):
    request = pb.AuthorizeToolRequest(tenant_id="ten_a", scope=SCOPE, tool="delete")
    request.arguments.fields["path"].number_value = float("nan")
    request.arguments.fields["deep"].list_value.values.add().struct_value.fields["x"].null_value = 0
    request.arguments.fields["unset"].Clear()
    decision = await policy.ask(request)
    assert (decision.effect, decision.pattern, decision.summary) == ("ask", "", "Delete ?")


async def test_everything_is_explained_for_what_a_chat_would_run_on(policy, folder, eventually):
    found = await policy.explain()
    assert [each.tool for each in found.tools] == list(BUILT_IN)
    assert (list(found.unknown), len(found.rules)) == ([], 12)
    more = '[provider.openai]\ndeny = ["exec", "nope"]\n[group.on_light]\nruntimes = ["light"]\ndeny = ["python"]\n'
    (folder / "tools.toml").write_text(TOML + more)

    async def denied():
        return {each.tool for each in (await policy.explain()).tools if each.decision.effect == "deny"}

    assert await eventually(denied) == {"exec", "python"}
    (one,) = (await policy.explain("exec")).tools
    assert (one.decision.layer, one.decision.rule) == ("provider", "provider.openai.deny: exec")
    assert [(step.layer, step.effect) for step in one.steps][:3] == [
        ("profile", "allow"),
        ("provider", "deny"),
        ("profile_provider", "silent"),
    ]
    assert list((await policy.explain()).unknown) == ["provider: nope"]
    (other,) = (await policy.explain("python", runtime="openclaw", model="local")).tools
    assert other.decision.effect == "allow"
    decision = await policy.decide()
    assert set(BUILT_IN) - set(decision.tools) == {"exec", "python"}


async def test_files_that_change_hold_within_a_moment_and_bad_ones_never(policy, folder, eventually):
    first = (await policy.explain()).rules
    (folder / "tools.cedar").write_text("permit (")

    async def refused():
        rules = (await policy.explain()).rules
        return rules if rules != first else ""

    assert (await eventually(refused)).startswith(f"{first}; newer files are refused: tools.cedar: ")
    assert await policy.effect("read") == "allow", "the old rules hold"
    nobody = '@id("closed") forbid (principal, action, resource);'
    (folder / "tools.cedar").write_text(nobody)

    async def rule():
        return (await policy.authorize("read")).rule == "closed"

    assert await eventually(rule)
    assert "refused" not in (await policy.explain()).rules


async def test_a_plans_wall_and_hosts_reach_the_worker_and_a_kind_without_tools_gets_none(policy, folder, eventually):
    more = '[plan.pro]\nisolation = "gvisor"\n[group.titles]\nkinds = ["title"]\ndeny = ["*"]\n'
    (folder / "tools.toml").write_text(TOML.replace("egress = []", 'egress = ["api.example.com:443"]') + more)

    async def walled():
        decision = await policy.decide()
        return decision if decision.sandbox_profile == "gvisor" else None

    assert list((await eventually(walled)).egress) == ["api.example.com:443"]
    decision = await policy.decide(kind="title", run_id="run_b")
    assert (list(decision.tools), decision.sandbox_profile, list(decision.egress)) == ([], "", [])


async def test_a_run_is_offered_what_whoever_asked_for_it_may_call(policy, folder, eventually):
    (folder / "tools.toml").write_text(TOML + '[group.guests]\nprincipals = ["guest_*"]\ndeny = ["exec"]\n')

    async def offered(principal):
        tenancy.enter(tenancy.Identity("ten_a", principal))
        return "exec" in (await policy.decide()).tools

    async def denied():
        return not await offered("guest_1")

    assert await eventually(denied)
    assert await offered("usr_1")
    assert await offered("")


async def test_with_rules_that_cannot_be_followed_it_does_not_start(assembled, settings, folder):
    (folder / "tools.toml").write_text("[defaults]\nprofile = 5\n")
    with pytest.raises(SettingError, match=r"^RETINUE_POLICY_DIR='.*': tools\.toml: "):
        await assembled(assemble, settings)
    with pytest.raises(SettingError, match="is no folder"):
        Settings("unix:/x", "unix:/y", "unix:///z", policy_dir=str(folder / "gone"))


def test_rules_are_read_from_a_folder_and_only_what_is_theirs(tmp_path: Path):
    files = RuleFiles(tmp_path)
    with pytest.raises(BadRulesError, match=r"tools\.toml is missing"):
        files.load(files.read())
    (tmp_path / "tools.toml").write_text(TOML)
    (tmp_path / "README.md").write_text("not a rule")
    with pytest.raises(BadRulesError, match=r"\*\.cedar"):
        files.load(files.read())
    (tmp_path / "b.cedar").write_text(CEDAR)
    (tmp_path / "a.cedar").write_text("")
    assert list(files.read()) == ["a.cedar", "b.cedar", "tools.toml"]
    assert files.load(files.read()).ruleset.default_profile == "standard"


def test_bounded_files_that_are_too_many_or_too_large_are_refused(tmp_path: Path):
    files = RuleFiles(tmp_path)
    (tmp_path / "tools.toml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(BadRulesError, match="bytes in all"):
        files.read()
    (tmp_path / "tools.toml").write_bytes(b"\xff")
    with pytest.raises(BadRulesError, match="not UTF-8"):
        files.read()
    for number in range(65):
        (tmp_path / f"{number}.cedar").touch()
    with pytest.raises(BadRulesError, match="more than 64 files"):
        files.read()
    with pytest.raises(BadRulesError, match="No such file"):
        RuleFiles(tmp_path / "gone").read()
