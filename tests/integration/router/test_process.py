"""The service as a process: started on an empty database, and stopped."""

import signal

import asyncpg
from google.protobuf import json_format
from retinue.router.v1 import router_service_pb2 as wire
from retinue.router.v1 import router_service_pb2_grpc


async def test_the_service_migrates_serves_and_stops(postgres_server, redis_url, run_dir, launch, peer, healthy):
    postgres_server.start()
    folder = postgres_server.socket_dir
    admin = await asyncpg.connect(f"postgresql://postgres@/postgres?host={folder}")
    await admin.execute("create database started_by_itself")

    def dsn(role):
        return f"postgresql://{role}@/started_by_itself?host={folder}"

    address = f"unix:{run_dir}/router.sock"
    process = launch(
        "retinue_router", RETINUE_ADDRESS=address, RETINUE_MIGRATE_DSN=dsn("postgres"),
        RETINUE_POSTGRES_DSN=dsn("retinue_router"), RETINUE_SWEEP_DSN=dsn("retinue_sweep"), RETINUE_REDIS_URL=redis_url,
        RETINUE_WORKSPACES_DIR=str(run_dir / "workspaces"),
    )  # fmt: skip
    router = peer("router", address)
    await healthy(router)
    stub = router_service_pb2_grpc.RouterServiceStub(router.channel)
    asked = {"tenant_id": "ten_a", "contact": "anna", "text": "hello", "kind": "chat", "on_busy": "enqueue"}
    answer = await router.call(stub.SubmitRun, json_format.ParseDict(asked, wire.SubmitRunRequest()))
    assert answer.run.run_id
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0, process.log()
    assert "hello" not in process.log()
    await admin.execute("drop database started_by_itself with (force)")
    await admin.close()


def test_a_missing_setting_is_one_clear_line(launch):
    process = launch("retinue_router", RETINUE_ADDRESS="unix:/tmp/x")
    assert process.wait(20) == 2
    assert process.log() == "RETINUE_POSTGRES_DSN is not set.\n"
