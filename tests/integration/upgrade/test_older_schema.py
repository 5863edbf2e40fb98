"""This release on a schema that has not seen its migrations: it says so, loses nothing, and goes on by itself."""

import pytest
from retinue.router.v1 import router_service_pb2 as wire
from retinue.router.v1 import router_service_pb2_grpc
from retinue_kit import postgres
from retinue_kit.errors import Reason, RetinueError

SINCE = "0004"
OLDER = "the schema is older than this release"


@pytest.fixture
def settings(database, redis_url, run_dir):
    """Settings of a process without the right to migrate."""
    nobody = f"unix:{run_dir}/nobody.sock"
    return {
        "RETINUE_POSTGRES_DSN": database.dsn("retinue_router"),
        "RETINUE_SWEEP_DSN": database.dsn("retinue_sweep"),
        "RETINUE_REDIS_URL": redis_url,
        "RETINUE_WORKSPACES_DIR": str(run_dir),
        "RETINUE_POLICY_ADDRESS": nobody,
        "RETINUE_DIRECTORY_ADDRESS": nobody,
        "RETINUE_RUNTIME_ADAPTER_ADDRESS": nobody,
    }


def refusing(peer):
    """A check that a process answers, and says that it does not serve."""

    async def refuses():
        with pytest.raises(RetinueError) as refusal:
            await peer.check()
        return refusal.value.private == "not serving"

    return refuses


async def test_a_router_refuses_and_says_why_until_the_schema_is_there(
    database, migrate_to, settings, launch, peer, run_dir, eventually, healthy
):
    await migrate_to(database, SINCE)
    address = f"unix:{run_dir}/router.sock"
    process = launch("retinue_router", **settings, RETINUE_ADDRESS=address)
    router = peer("router", address)
    await eventually(refusing(router), timeout_s=30)
    stub = router_service_pb2_grpc.RouterServiceStub(router.channel)
    request = wire.SubmitRunRequest(
        tenant_id="ten_a", contact="anna", text="x", kind="chat", on_busy="enqueue", idempotency_key="k1"
    )
    with pytest.raises(RetinueError) as refusal:
        await router.call(stub.SubmitRun, request)
    assert (refusal.value.reason, refusal.value.retry_after_s is not None) == (Reason.DEPENDENCY_UNAVAILABLE, True)
    assert "schema" not in refusal.value.message
    assert OLDER in process.log()
    assert '"level": "error"' not in process.log()
    await postgres.migrate(database.admin_dsn, "retinue_router", "router")
    await healthy(router)
    accepted = await router.call(stub.SubmitRun, request)
    assert not accepted.replayed


async def test_a_worker_takes_nothing_until_the_schema_is_there_and_then_what_waits(
    database, migrate_to, settings, launch, peer, run_dir, eventually, healthy, released, seen
):
    await migrate_to(database, SINCE)
    run = (await released.submit("x"))["run_id"]
    address = f"unix:{run_dir}/worker.sock"
    process = launch("retinue_router.worker", **settings, RETINUE_ADDRESS=address)
    worker = peer("worker", address)
    await eventually(refusing(worker), timeout_s=30)
    assert OLDER in process.log()
    held = await released.claim()  # nobody else has taken it, and the former release goes on
    await released.finish(held, "queued")
    assert tuple((await seen("select attempt, state from router.runs"))[0]) == (1, "queued")
    await postgres.migrate(database.admin_dsn, "retinue_router", "router")
    await healthy(worker)

    async def taken():
        return (await seen("select attempt from router.runs where run_id = $1", run))[0]["attempt"] == 2

    await eventually(taken)
