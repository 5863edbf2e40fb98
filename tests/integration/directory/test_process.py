"""The directory as a process: it migrates, serves, tells of its health, drains."""

import signal

import asyncpg
from grpc_health.v1 import health_pb2, health_pb2_grpc
from retinue.directory.v1 import directory_service_pb2 as pb
from retinue.directory.v1 import directory_service_pb2_grpc


async def test_it_migrates_an_empty_database_serves_and_drains(
    make_database, launch, run_dir, peer, healthy, eventually
):
    database = await make_database("retinue_directory", "directory")
    admin = await asyncpg.connect(database.admin_dsn)
    await admin.execute("drop schema directory cascade")
    await admin.close()
    address = f"unix:{run_dir}/directory.sock"
    process = launch(
        "retinue_directory",
        RETINUE_ADDRESS=address,
        RETINUE_POSTGRES_DSN=database.dsn("retinue_directory"),
        RETINUE_MIGRATE_DSN=database.admin_dsn,
    )
    directory = peer("directory", address)
    await healthy(directory)
    await directory.check("postgres")
    stub = directory_service_pb2_grpc.DirectoryServiceStub(directory.channel)
    tenant = (await directory.call(stub.CreateTenant, pb.CreateTenantRequest(name="acme"))).tenant
    issued = await directory.call(stub.IssueToken, pb.IssueTokenRequest(tenant_id=tenant.tenant_id))
    process.send_signal(signal.SIGTERM)
    assert await eventually(lambda: process.poll() is not None)
    assert process.returncode == 0, process.log()
    assert issued.token not in process.log()


async def test_without_postgres_it_starts_and_says_that_it_is_not_healthy(launch, run_dir, peer, eventually):
    address = f"unix:{run_dir}/directory.sock"
    launch("retinue_directory", RETINUE_ADDRESS=address, RETINUE_POSTGRES_DSN=f"postgresql://x@/retinue?host={run_dir}")
    health = health_pb2_grpc.HealthStub(peer("directory", address).channel)

    async def not_serving():
        request = health_pb2.HealthCheckRequest()
        answer = await health.Check(request, timeout=30, wait_for_ready=True)
        return answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

    assert await eventually(not_serving)


async def test_a_missing_setting_is_one_line_and_exit_2(launch, eventually):
    process = launch("retinue_directory")
    assert await eventually(lambda: process.poll() is not None)
    assert (process.returncode, process.log()) == (2, "RETINUE_ADDRESS is not set.\n")
