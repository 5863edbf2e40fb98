"""Portability as a process: it is healthy, and refuses by name what it cannot do."""

import signal

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from retinue.portability.v1 import portability_service_pb2 as pb
from retinue.portability.v1 import portability_service_pb2_grpc
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_portability.__main__ import assemble
from retinue_portability.config import Settings

SERVICE = "retinue.portability.v1.PortabilityService"


@pytest.fixture
async def portability(assembled, run_dir, peer):
    return peer("portability", await assembled(assemble, Settings(f"unix:{run_dir}/portability.sock")))


@pytest.mark.parametrize("method", ["BuildBundle", "VerifyBundle"])
async def test_each_call_is_refused_with_the_capability_that_is_missing(portability, method):
    stub = portability_service_pb2_grpc.PortabilityServiceStub(portability.channel)
    fields = {"session_id": "ses_a"} if method == "BuildBundle" else {}
    with pytest.raises(RetinueError) as caught:
        await portability.call(getattr(stub, method), getattr(pb, f"{method}Request")(tenant_id="ten_a", **fields))
    assert (caught.value.reason, caught.value.code) == (Reason.CAPABILITY_MISSING, Code.FAILED_PRECONDITION)
    assert caught.value.metadata == {"capability": "portability"}
    assert caught.value.retry_after_s is None


async def test_health_and_reflection_answer(portability):
    await portability.check(SERVICE)
    call = reflection_pb2_grpc.ServerReflectionStub(portability.channel).ServerReflectionInfo(timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_it_serves_as_a_process_and_drains(launch, run_dir, peer, healthy, eventually):
    address = f"unix:{run_dir}/portability.sock"
    process = launch("retinue_portability", RETINUE_ADDRESS=address)
    await healthy(peer("portability", address))
    process.send_signal(signal.SIGTERM)
    assert await eventually(lambda: process.poll() is not None)
    assert process.returncode == 0, process.log()
