"""The operator's own check of each tool call, by an endpoint on real HTTP, as policy asks it."""

import asyncio
import json

import pytest
from aiohttp import web
from google.protobuf import struct_pb2
from opentelemetry import trace
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.policy.v1 import tool_service_pb2 as pb
from retinue.policy.v1 import tool_service_pb2_grpc
from retinue_kit import tenancy
from retinue_kit.server import Service
from retinue_policy.__main__ import assemble
from retinue_policy.before_call import ANSWER_SIZE_MAX_BYTES, REASON_LENGTH_MAX, UNANSWERED
from retinue_policy.config import Settings

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Directory(directory_service_pb2_grpc.DirectoryServiceServicer):
    """A directory that knows a tenant."""

    async def GetTenant(self, request, context):
        agent = directory_service_pb2.Agent(agent_id="agt_a", model="openai/x")
        tenant = directory_service_pb2.Tenant(tenant_id=request.tenant_id, agent=agent, plan="pro")
        return directory_service_pb2.GetTenantResponse(tenant=tenant)


class Check:
    """An operator's endpoint: answers what a test says."""

    def __init__(self):
        self.asked = []
        self.answer = {"decision": "allow"}
        self.released = asyncio.Event()

    async def handle(self, request):
        self.asked.append((dict(request.headers), await request.json()))
        if isinstance(self.answer, web.StreamResponse):
            return self.answer
        if self.answer is None:
            await self.released.wait()
        return web.Response(body=self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode())


@pytest.fixture
async def check():
    made = Check()
    app = web.Application()
    app.router.add_post("/check", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://me:secret@127.0.0.1:{runner.addresses[0][1]}/check"
    yield made
    made.released.set()
    await runner.cleanup()


@pytest.fixture
async def authorize(serve, assembled, peer, run_dir, redis_url, check):
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    directory = await serve([Service(add, Directory(), "retinue.directory.v1.DirectoryService")])
    settings = Settings(
        f"unix:{run_dir}/policy.sock", directory, redis_url,
        before_tool_call_url=check.url, before_tool_call_timeout_s=0.3,
    )  # fmt: skip
    policy = peer("policy", await assembled(assemble, settings))
    stub = tool_service_pb2_grpc.ToolServiceStub(policy.channel)

    async def ask(tool, **arguments):
        tenancy.enter(tenancy.Identity("ten_a", "usr_1"))
        struct = struct_pb2.Struct()
        struct.update(arguments)
        scope = pb.ToolScope(agent_id="agt_a", principal="usr_1", kind="chat", runtime="openclaw", model="m")
        request = pb.AuthorizeToolRequest(tenant_id="ten_a", scope=scope, tool=tool, arguments=struct)
        return (await policy.call(stub.AuthorizeTool, request)).decision

    return ask


async def test_an_operators_endpoint_is_told_of_each_call_and_its_no_holds(authorize, check):
    here = trace.SpanContext(int(TRACE_ID, 16), 1, is_remote=True, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(here)):
        assert (await authorize("write", path="a.txt", content="x")).effect == "allow"
    ((headers, asked),) = check.asked
    assert asked == {
        "tenant_id": "ten_a", "agent_id": "agt_a", "principal": "usr_1", "kind": "chat", "runtime": "openclaw",
        "tool": "write", "arguments": {"path": "a.txt", "content": "x"}, "effect": "allow",
    }  # fmt: skip
    assert headers["Authorization"] == "Basic bWU6c2VjcmV0"
    assert headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    check.answer = {"decision": "deny", "reason": "Not\nhere." + "!" * 1000}
    decision = await authorize("delete", path="a.txt")
    assert (decision.effect, decision.layer, decision.rule) == ("deny", "hook", "before_tool_call")
    assert decision.reason.startswith("Not\\nhere.!")
    assert (len(decision.reason), check.asked[-1][1]["effect"]) == (REASON_LENGTH_MAX, "ask")
    assert (await authorize("nonsense")).layer == "global"
    assert len(check.asked) == 2, "what the rules deny is not asked about"


async def test_without_a_clear_answer_no_call_is_made(authorize, check):
    for answer in (
        {"decision": "perhaps"},
        {"reason": "none"},
        b"yes",
        b'{"decision": "allow", "reason": "' + b"x" * ANSWER_SIZE_MAX_BYTES + b'"}',
        web.Response(status=500, text='{"decision": "allow"}'),
        web.Response(status=302, headers={"Location": check.url}),
        None,
    ):
        check.answer, asked = answer, len(check.asked)
        decision = await authorize("read", path="a")
        assert (decision.effect, decision.reason, len(check.asked)) == ("deny", UNANSWERED, asked + 1), answer
