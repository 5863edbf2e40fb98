"""Portability as a process: healthy without neighbours, and with a key or not at all."""

import signal

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from retinue_kit.config import SettingError
from retinue_portability.config import Settings
from retinue_portability.format.signing import new_key

SERVICE = "retinue.portability.v1.PortabilityService"


async def test_health_and_reflection_answer(mesh):
    await mesh.peer.check(SERVICE)
    call = reflection_pb2_grpc.ServerReflectionStub(mesh.peer.channel).ServerReflectionInfo(timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_it_serves_as_a_process_without_neighbours_and_drains(launch, run_dir, peer, healthy, eventually):
    address, key = f"unix:{run_dir}/portability.sock", run_dir / "key"
    key.write_bytes(new_key())
    nobody = f"unix:{run_dir}/nobody.sock"
    environ = {"RETINUE_ADDRESS": address, "RETINUE_ROUTER_ADDRESS": nobody, "RETINUE_DIRECTORY_ADDRESS": nobody}
    process = launch("retinue_portability", **environ, RETINUE_BUNDLE_SIGNING_KEY_FILE=str(key))
    keyless = launch("retinue_portability", **environ, RETINUE_BUNDLE_SIGNING_KEY_FILE=f"{run_dir}/absent")
    await healthy(peer("portability", address))
    process.send_signal(signal.SIGTERM)
    assert await eventually(lambda: process.poll() is not None and keyless.poll() is not None)
    assert process.returncode == 0, process.log()
    assert keyless.returncode == 2
    assert "cannot be read" in keyless.log()


@pytest.mark.parametrize("budget", [255, 500_001])
def test_a_budget_that_makes_no_sense_is_refused_at_the_start(run_dir, budget):
    with pytest.raises(SettingError, match="RETINUE_BUNDLE_TOKEN_BUDGET"):
        Settings("unix:/a", "unix:/b", "unix:/c", run_dir / "key", bundle_token_budget=budget)
