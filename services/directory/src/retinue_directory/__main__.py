"""How the directory is assembled."""

from contextlib import AsyncExitStack
from functools import partial

from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue_kit import postgres, process
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server, Service

from retinue_directory import signing
from retinue_directory.config import Settings
from retinue_directory.operations import Directory
from retinue_directory.service import DirectoryServicer
from retinue_directory.store import PostgresStore

SERVICE = directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Migrate if told to, open the pool lazily, build the server."""
    if settings.migrate_dsn:
        await postgres.migrate(settings.migrate_dsn, "retinue_directory", "directory")
    pool = await postgres.connect(settings.postgres_dsn, min_size=0, max_size=settings.postgres_pool_count)
    stack.push_async_callback(pool.close)
    directory = Directory(PostgresStore(pool), signing, SystemClock())
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    return Server(
        settings.address,
        [Service(add, DirectoryServicer(directory), SERVICE)],
        {"postgres": partial(postgres.ping, pool)},
    )


if __name__ == "__main__":
    process.main("directory", Settings, assemble)
