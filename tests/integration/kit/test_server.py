"""The steps around each call, seen from a client: validation, errors, deadline, identity, health, drain."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue.policy.v1 import policy_service_pb2_grpc
from retinue.sandbox.v1 import sandbox_service_pb2, sandbox_service_pb2_grpc
from retinue_kit import deadlines, telemetry, tenancy
from retinue_kit.errors import RETRY_AFTER_S, Code, Reason, RetinueError
from retinue_kit.server import Service

POLICY = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
SANDBOX = sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name
REQUEST = pb.DecideRequest(tenant_id="ten_a", run_id="run_a", kind="chat")
TRACEPARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class Scripted(policy_service_pb2_grpc.PolicyServiceServicer):
    """Does what a test tells it to within a call."""

    def __init__(self):
        self.script = None

    async def Decide(self, request, context):
        if self.script is not None:
            await self.script()
        return pb.DecideResponse()


class Streaming(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Says one thing and fails."""

    async def Exec(self, request, context):
        yield sandbox_service_pb2.ExecResponse(output={"stream": "stdout", "data": b"one"})
        raise ValueError("select secret from table")


class Endless(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Says one thing and then nothing, for ever."""

    def __init__(self):
        self.left = asyncio.Event()

    async def Exec(self, request, context):
        try:
            yield sandbox_service_pb2.ExecResponse(output={"stream": "stdout", "data": b"one"})
            await asyncio.Event().wait()
        finally:
            self.left.set()


class Failing:
    """A dependency that can be taken away."""

    def __init__(self):
        self.there = True

    async def __call__(self):
        if not self.there:
            raise RetinueError.unavailable("postgres")


@pytest.fixture
def servicer():
    return Scripted()


@pytest.fixture
def dependency():
    return Failing()


@pytest.fixture
async def address(serve, servicer, dependency):
    services = [
        Service(policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, servicer, POLICY),
        Service(sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server, Streaming(), SANDBOX),
    ]
    return await serve(services, {"postgres": dependency})


@pytest.fixture
def stub(peer, address):
    return policy_service_pb2_grpc.PolicyServiceStub(peer("policy", address).channel)


async def status_of(call):
    """Answer the error, its google.rpc.Status, ErrorInfo and RetryInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info) if detail.Is(info.DESCRIPTOR) else detail.Unpack(retry)
    assert caught.value.code() is not grpc.StatusCode.UNKNOWN
    return caught.value, status, info, retry


async def test_a_request_within_the_contracts_limits_passes(stub):
    assert await stub.Decide(REQUEST) == pb.DecideResponse()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.DecideRequest(run_id="run_a", kind="chat"), "tenant_id"),
        (pb.DecideRequest(tenant_id="ten_a", run_id="run_a", kind="x" * 65), "kind"),
        (pb.DecideRequest(tenant_id="ten_a", run_id="run_a", kind="chat", attempt=-1), "attempt"),
    ],
)
async def test_a_field_out_of_its_limits_is_named(stub, request_, field):
    error, _, info, _ = await status_of(stub.Decide(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (info.reason, info.domain, dict(info.metadata)) == ("FIELD_INVALID", "retinue", {"field": field})


@pytest.mark.parametrize("data", [b"\x0a\x01\xff", b"nonsense"])
async def test_bytes_that_are_no_message_are_refused_like_any_bad_request(peer, address, data):
    method = f"/{POLICY}/Decide"
    error, status, info, _ = await status_of(peer("policy", address).channel.unary_unary(method)(data))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info.reason == "FIELD_INVALID"
    assert "DecodeError" not in status.message


async def test_an_exception_that_is_not_ours_is_internal_with_a_fixed_sentence(stub, servicer):
    async def script():
        raise ValueError("select secret from table")

    servicer.script = script
    error, status, info, _ = await status_of(stub.Decide(REQUEST))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert status.message == "Something went wrong inside; the trace id leads to it."
    assert info.reason == "INTERNAL"
    assert "secret" not in str(error)


async def test_a_stream_that_fails_midway_ends_with_the_same_kind_of_status(peer, address):
    sandbox = peer("sandbox", address)
    stub = sandbox_service_pb2_grpc.SandboxServiceStub(sandbox.channel)
    request = sandbox_service_pb2.ExecRequest(tenant_id="t", session_id="s", fencing_token=1, argv=["x"])
    said = []

    async def hear():
        async for response in sandbox.stream(stub.Exec, request, timeout_s=5):
            said.append(response.output.data)

    with pytest.raises(RetinueError) as caught:
        await hear()
    assert said == [b"one"]
    assert (caught.value.reason, caught.value.code) == (Reason.INTERNAL, Code.INTERNAL)
    assert "secret" not in caught.value.message


async def test_an_error_of_ours_keeps_reason_metadata_and_retry(stub, servicer):
    async def script():
        raise RetinueError.unavailable("postgres", private="host=10.0.0.1")

    servicer.script = script
    call = stub.Decide(REQUEST)
    error, _, info, retry = await status_of(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert (info.reason, dict(info.metadata)) == ("DEPENDENCY_UNAVAILABLE", {"dependency": "postgres"})
    assert retry.retry_delay.ToMilliseconds() == RETRY_AFTER_S * 1000
    assert "10.0.0.1" not in str(error)
    assert dict(await call.initial_metadata())["retry-after"] == "1"


@pytest.mark.parametrize(("timeout", "known"), [(3.0, True), (None, False)])
async def test_the_callers_deadline_bounds_what_the_handler_calls(stub, servicer, timeout, known):
    seen = []

    async def script():
        seen.append(deadlines.timeout_s(100.0))

    servicer.script = script
    await stub.Decide(REQUEST, timeout=timeout)
    assert (2 < seen[0] < 3) if known else seen[0] == 100.0


class Relay(directory_service_pb2_grpc.DirectoryServiceServicer):
    """Calls policy within its own call."""

    def __init__(self, policy):
        self.policy = policy

    async def GetTenant(self, request, context):
        stub = policy_service_pb2_grpc.PolicyServiceStub(self.policy.channel)
        await self.policy.call(stub.Decide, REQUEST)
        return directory_service_pb2.GetTenantResponse()


async def test_deadline_trace_and_identity_travel_through_a_service(serve, peer, address, servicer):
    relay = Relay(peer("policy", address))
    name = directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"].full_name
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    outer = peer("directory", await serve([Service(add, relay, name)]))
    seen = {}

    async def look():
        seen.update(left=deadlines.timeout_s(100.0), trace=telemetry.trace_id(), identity=tenancy.current())

    servicer.script = look
    stub = directory_service_pb2_grpc.DirectoryServiceStub(outer.channel)
    metadata = (("traceparent", TRACEPARENT), ("x-retinue-tenant", "ten_a"), ("x-retinue-principal", "usr_a"))
    request = directory_service_pb2.GetTenantRequest(name="a")
    await stub.GetTenant(request, timeout=4.0, metadata=metadata)
    assert 0 < seen["left"] < 4, "what the first caller has left, not the hop's own default"
    assert seen["trace"] == "a" * 32
    assert (seen["identity"].tenant_id, seen["identity"].principal) == ("ten_a", "usr_a")


async def test_a_call_further_in_ends_with_the_callers_time(serve, peer, address, servicer, eventually):
    relay = Relay(peer("policy", address))
    name = directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"].full_name
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    outer = peer("directory", await serve([Service(add, relay, name)]))
    cancelled = asyncio.Event()

    async def hang():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    servicer.script = hang
    stub = directory_service_pb2_grpc.DirectoryServiceStub(outer.channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetTenant(directory_service_pb2.GetTenantRequest(name="a"), timeout=0.2)
    await eventually(cancelled.is_set)


async def test_a_request_for_another_tenant_than_the_callers_is_refused(stub):
    for tenant_id, refused in (("ten_a", False), ("ten_b", True)):
        call = stub.Decide(REQUEST, metadata=((tenancy.TENANT_KEY, tenant_id),))
        if refused:
            error, _, info, _ = await status_of(call)
            assert (error.code(), info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "TENANT_MISMATCH")
        else:
            await call


async def test_a_burst_larger_than_grpcs_own_queue_is_answered_call_by_call(stub, address):
    burst = 2600
    with grpc.insecure_channel(address) as channel:
        blocking = policy_service_pb2_grpc.PolicyServiceStub(channel)
        # Sent without giving the loop a turn, so that they pile up before the server begins with the first.
        calls = [blocking.Decide.future(REQUEST, timeout=60) for _ in range(burst)]
        codes = await asyncio.to_thread(lambda: {call.code() for call in calls})
    assert codes == {grpc.StatusCode.OK}


async def test_a_draining_server_refuses_what_is_new_and_finishes_what_it_began(serve, stub, address, servicer):
    began, finish = asyncio.Event(), asyncio.Event()

    async def script():
        began.set()
        await finish.wait()

    servicer.script = script
    under_way = stub.Decide(REQUEST)
    await began.wait()
    server = serve.server(address)
    server._steps.draining = True
    error, _, info, retry = await status_of(stub.Decide(REQUEST))
    assert (error.code(), info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert retry.retry_delay.ToMilliseconds() > 0
    draining = asyncio.create_task(server.drain(10))
    finish.set()
    assert await under_way == pb.DecideResponse()
    await draining


async def test_a_call_that_outlasts_the_grace_is_told_why_it_was_cut(serve, stub, address, servicer):
    began, never = asyncio.Event(), asyncio.Event()

    async def script():
        began.set()
        await never.wait()

    servicer.script = script
    under_way = stub.Decide(REQUEST)
    await began.wait()
    draining = asyncio.create_task(serve.server(address).drain(1))
    error, _, info, retry = await status_of(under_way)
    assert (error.code(), info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert retry.retry_delay.ToMilliseconds() > 0
    await draining


async def test_health_follows_the_dependencies(address, peer, dependency, eventually):
    policy = peer("policy", address)
    health = health_pb2_grpc.HealthStub(policy.channel)

    async def serves(name):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def none_serves():
        return not any([await serves(name) for name in ("", POLICY, "postgres")])

    for name in ("", POLICY, "postgres"):
        await policy.check(name)
    dependency.there = False
    assert await eventually(none_serves)
    with pytest.raises(RetinueError) as caught:
        await policy.check("postgres")
    assert caught.value.metadata == {"dependency": "postgres"}
    dependency.there = True
    assert await eventually(lambda: serves(""))


async def test_a_peer_that_is_not_there_is_unavailable_at_once(peer, run_dir):
    nobody = peer("policy", f"unix:{run_dir}/nobody.sock")
    stub = policy_service_pb2_grpc.PolicyServiceStub(nobody.channel)
    with pytest.raises(RetinueError) as caught:
        await nobody.call(stub.Decide, REQUEST)
    assert (caught.value.reason, caught.value.metadata) == (Reason.DEPENDENCY_UNAVAILABLE, {"dependency": "policy"})


async def test_a_stream_that_outlasts_the_grace_is_cut_with_a_reason(serve, peer):
    endless = Endless()
    add = sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server
    address = await serve([Service(add, endless, SANDBOX)])
    sandbox = peer("sandbox", address)
    request = sandbox_service_pb2.ExecRequest(tenant_id="t", session_id="s", fencing_token=1, argv=["x"])
    stream = sandbox.stream(sandbox_service_pb2_grpc.SandboxServiceStub(sandbox.channel).Exec, request, timeout_s=30)
    assert (await anext(stream)).output.data == b"one"
    draining = asyncio.create_task(serve.server(address).drain(1))
    with pytest.raises(RetinueError) as caught:
        await anext(stream)
    assert caught.value.reason is Reason.DRAINING
    assert caught.value.retry_after_s == RETRY_AFTER_S
    await asyncio.wait_for(endless.left.wait(), 10)
    await draining
