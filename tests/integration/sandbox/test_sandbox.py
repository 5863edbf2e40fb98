"""The sandbox as a process: it is healthy, and executes nothing without a box."""

import signal

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue.sandbox.v1 import sandbox_service_pb2_grpc
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_sandbox.__main__ import assemble
from retinue_sandbox.config import Settings

SERVICE = "retinue.sandbox.v1.SandboxService"


@pytest.fixture
async def sandbox(assembled, run_dir, peer):
    return peer("sandbox", await assembled(assemble, Settings(f"unix:{run_dir}/sandbox.sock")))


async def test_a_command_is_refused_and_not_executed(sandbox, run_dir):
    stub = sandbox_service_pb2_grpc.SandboxServiceStub(sandbox.channel)
    request = pb.ExecRequest(
        tenant_id="ten_a", session_id="ses_a", fencing_token=1, argv=["/usr/bin/env", "touch", f"{run_dir}/done"]
    )
    with pytest.raises(RetinueError) as caught:
        await anext(sandbox.stream(stub.Exec, request, timeout_s=5))
    assert (caught.value.reason, caught.value.code) == (Reason.CAPABILITY_MISSING, Code.FAILED_PRECONDITION)
    assert caught.value.metadata == {"capability": "sandbox"}
    assert not (run_dir / "done").exists()


async def test_health_and_reflection_answer(sandbox):
    await sandbox.check(SERVICE)
    call = reflection_pb2_grpc.ServerReflectionStub(sandbox.channel).ServerReflectionInfo(timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_it_serves_as_a_process_and_drains(launch, run_dir, peer, healthy, eventually):
    address = f"unix:{run_dir}/sandbox.sock"
    process = launch("retinue_sandbox", RETINUE_ADDRESS=address)
    await healthy(peer("sandbox", address))
    process.send_signal(signal.SIGTERM)
    assert await eventually(lambda: process.poll() is not None)
    assert process.returncode == 0, process.log()
