"""Postgres: a pool, a tenant's transaction, migrations, and connection trouble as one typed error."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import resources

import asyncpg

from retinue_kit.errors import RetinueError

COMMAND_TIMEOUT_S = 10.0
"""A statement of ours takes milliseconds; ten seconds is a store that is stuck."""

ACQUIRE_TIMEOUT_S = 5.0
"""Waiting longer for a connection than this means that the pool is too small or the store is down."""

_TROUBLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # used after the server has said farewell and before the socket is closed
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.TransactionRollbackError,  # lost a race against another; nothing was written
    OSError,
    TimeoutError,
)


@contextmanager
def translating() -> Iterator[None]:
    """Turn connection trouble into DEPENDENCY_UNAVAILABLE, so that no exception of the driver leaves a store."""
    try:
        yield
    except _TROUBLE as error:
        raise RetinueError.unavailable("postgres", private=f"{type(error).__name__}: {error}") from error


async def _keep_state(_connection: object) -> None:
    # The pool's own reset doubles the transactions per call; nothing here leaves session state behind.
    return None


async def connect(dsn: str, *, max_size: int = 8, min_size: int = 1) -> "asyncpg.Pool":
    """Open a pool. Raises RetinueError(DEPENDENCY_UNAVAILABLE) if the server does not answer."""
    with translating():
        return await asyncpg.create_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            command_timeout=COMMAND_TIMEOUT_S,
            timeout=ACQUIRE_TIMEOUT_S,
            reset=_keep_state,
            server_settings={"jit": "off"},
        )


@asynccontextmanager
async def as_tenant(pool: "asyncpg.Pool", tenant_id: str) -> AsyncIterator["asyncpg.Connection"]:
    """Open a transaction that sees this tenant's rows only: row level security reads app.tenant_id."""
    with translating():
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
            await connection.execute("select set_config('app.tenant_id', $1, true)", tenant_id)
            yield connection


async def migrate(dsn: str, package: str, schema: str) -> None:
    """Apply the .sql files of `package`.migrations that this database has not seen, in the order of their names.

    Each file runs in a transaction of its own; an advisory lock lets one process at a time do it.
    """
    with translating():
        connection = await asyncpg.connect(dsn, timeout=ACQUIRE_TIMEOUT_S)
    try:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(hashtext('retinue-migrations'))")
            await connection.execute(
                f"create schema if not exists {schema};"
                f"create table if not exists {schema}.migrations"
                "(name text primary key, time timestamptz not null default clock_timestamp())"
            )
            done = {row["name"] for row in await connection.fetch(f"select name from {schema}.migrations")}  # noqa: S608
            folder = resources.files(package) / "migrations"
            for file in sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name):
                if file.name not in done:
                    await connection.execute(file.read_text("utf-8"))
                    await connection.execute(f"insert into {schema}.migrations(name) values ($1)", file.name)  # noqa: S608
    finally:
        await connection.close(timeout=ACQUIRE_TIMEOUT_S)


async def ping(pool: "asyncpg.Pool") -> None:
    """Raise if the server does not answer."""
    with translating():
        async with asyncio.timeout(ACQUIRE_TIMEOUT_S), pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            await connection.fetchval("select 1")
