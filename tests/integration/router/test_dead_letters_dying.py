"""The router dies around the commit of a retry or a drop; whoever asks again gets the same answer."""

import pytest
from retinue.router.v1 import dead_letter_service_pb2 as wire
from retinue.router.v1 import dead_letter_service_pb2_grpc
from retinue_kit.errors import RetinueError
from retinue_router.crash_points import Point

TENANT = "ten_a"


async def set_aside(core, contact):
    """Make a run fail so that it is set aside; answers its id."""
    run = (await core.submit(contact=contact))["run_id"]
    held = await core.claim(f"log_{contact}")
    await core.finish(held, "failed", log=f"log_{contact}", dead=True)
    return run


async def test_a_retry_and_a_drop_converge_wherever_the_router_dies(
    core, database, redis_url, run_dir, launch, peer, healthy
):
    address, armed = f"unix:{run_dir}/router.sock", run_dir / "crashes" / "armed"

    async def begin():
        process = launch(
            "retinue_router",
            RETINUE_ADDRESS=address,
            RETINUE_POSTGRES_DSN=database.dsn("retinue_router"),
            RETINUE_SWEEP_DSN=database.dsn("retinue_sweep"),
            RETINUE_REDIS_URL=redis_url,
            RETINUE_WORKSPACES_DIR=str(run_dir),
            RETINUE_CRASH_DIR=str(run_dir / "crashes"),
        )
        router = peer("router", address)
        await healthy(router)
        return process, router, dead_letter_service_pb2_grpc.DeadLetterServiceStub(router.channel)

    process, router, stub = await begin()
    for number, point in enumerate((Point.RETRY_COMMITTED, Point.DROP_COMMITTED)):
        dead = await set_aside(core, f"c{number}")
        is_drop = point is Point.DROP_COMMITTED
        method = "DropDeadLetter" if is_drop else "RetryDeadLetter"
        request = getattr(wire, f"{method}Request")(tenant_id=TENANT, run_id=dead)
        (armed / point).write_text("kill")
        with pytest.raises(RetinueError):
            await router.call(getattr(stub, method), request)
        process.wait(10)
        before = (await core.run(dead))["retried_as"]
        assert (before is None) == is_drop
        process, router, stub = await begin()
        answers = [await router.call(getattr(stub, method), request) for _ in range(2)]
        assert answers[0] == answers[1]
        if not is_drop:
            assert answers[0].run.run_id == before
        rows = await core.seen("select count(*) from router.runs where contact = $1", f"c{number}")
        assert rows == [(1 if is_drop else 2,)]
