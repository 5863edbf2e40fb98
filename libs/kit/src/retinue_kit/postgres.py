"""Postgres: a pool, a tenant's transaction, migrations, and connection trouble as one typed error."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import resources
from importlib.resources.abc import Traversable

import asyncpg
import structlog

from retinue_kit.errors import RetinueError

COMMAND_TIMEOUT_S = 10.0
"""A statement of ours takes milliseconds; ten seconds is a store that is stuck."""

ACQUIRE_TIMEOUT_S = 5.0
"""Waiting longer for a connection than this means that the pool is too small or the store is down."""

MIGRATION_TRIES_MAX = 60
MIGRATION_PAUSE_S = 0.2
"""A file that is in the way of others, or they in its, is tried again for about a minute."""

MIGRATION_TURN_MAX_S = 120.0
"""How long another process that migrates is waited for: one file of its may be tried for a minute."""

_TURN = "select pg_advisory_lock(hashtext('retinue-migrations'))"
_HOLDER = """
    select a.pid, coalesce(nullif(a.application_name, ''), 'no name') as name,
      coalesce(host(a.client_addr), 'a local socket') as place, a.usename as role, a.backend_start as since
    from pg_locks l join pg_stat_activity a using (pid), hashtext('retinue-migrations') as key (n)
    where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.objid = (key.n & 4294967295)::oid
      and l.classid = ((key.n::bigint >> 32) & 4294967295)::oid
      and l.database = (select d.oid from pg_database d where d.datname = current_database())
"""

# Everybody waits behind one who waits for a whole table, so that is not to take long. And of a deadlock, the one who
# looks for it first is the one who gives way: a superuser may look earlier than the others do.
_GIVE_WAY = """
    select set_config('lock_timeout', '500ms', true);
    select set_config('deadlock_timeout', '50ms', true) from pg_roles where rolname = current_user and rolsuper;
"""

SCHEMA_LOOK_S = 0.5
"""How often a process that may not begin before its schema is there looks for it."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_TROUBLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # used after the server has said farewell and before the socket is closed
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,  # connections, memory, or the disk: nothing was written
    asyncpg.ReadOnlySQLTransactionError,  # a standby that is not the primary yet
    asyncpg.IdleInTransactionSessionTimeoutError,  # this process was stopped for a while; nothing was written
    asyncpg.TransactionTimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.TransactionRollbackError,  # lost a race against another; nothing was written
    OSError,
    TimeoutError,
)

_OLDER = (
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidSchemaNameError,
)
"""What a release meets that came before its migrations; it is over once they are applied."""


@contextmanager
def translating() -> Iterator[None]:
    """Turn connection trouble into DEPENDENCY_UNAVAILABLE, so that no exception of the driver leaves a store.

    A schema that is older than the caller is trouble of the store as well, and passes as such trouble does.
    """
    try:
        yield
    except _OLDER as error:
        private = f"the schema is older than this release: {error}"
        raise RetinueError.unavailable("postgres", private=private) from error
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
async def as_tenant(
    pool: "asyncpg.Pool", tenant_id: str, *, snapshot: bool = False
) -> AsyncIterator["asyncpg.Connection"]:
    """Open a transaction that sees this tenant's rows only: row level security reads app.tenant_id.

    With `snapshot` it only reads, and all its statements see the same state.
    """
    options = {"isolation": "repeatable_read", "readonly": True} if snapshot else {}
    with translating():
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction(**options):
            await connection.execute("select set_config('app.tenant_id', $1, true)", tenant_id)
            yield connection


async def migrate(dsn: str, package: str, schema: str, turn_max_s: float = MIGRATION_TURN_MAX_S) -> None:
    """Apply the .sql files of `package`.migrations that this database has not seen, in the order of their names.

    Each file runs in a transaction of its own; an advisory lock lets one process at a time do it. Whoever works on the
    database meanwhile goes first: a file that has to wait for long is taken back and tried again. Raises
    RetinueError(DEPENDENCY_UNAVAILABLE) if the server does not answer, or never lets a file through, or if another
    process does not end within `turn_max_s`; the log tells which.
    """
    with translating():
        # Whoever waits behind this one is told its name.
        named = {"application_name": f"{package} migrating on {socket.gethostname()}"}
        connection = await asyncpg.connect(dsn, timeout=ACQUIRE_TIMEOUT_S, server_settings=named)
    try:
        await _take_turn(connection, turn_max_s)
        await connection.execute(
            f"create schema if not exists {schema};"
            f"create table if not exists {schema}.migrations"
            "(name text primary key, time timestamptz not null default clock_timestamp())"
        )
        done = {row["name"] for row in await connection.fetch(f"select name from {schema}.migrations")}  # noqa: S608
        for file in _migrations(package):
            if file.name not in done:
                await _apply(connection, schema, file)
    finally:
        await connection.close(timeout=ACQUIRE_TIMEOUT_S)


async def _take_turn(connection: "asyncpg.Connection", turn_max_s: float) -> None:
    try:
        async with connection.transaction():  # the setting ends with it, the lock with the connection
            await connection.execute(f"set local lock_timeout = {max(1, round(turn_max_s * 1000))}")
            await connection.execute(_TURN)
    except asyncpg.LockNotAvailableError as error:
        holders = [
            f"process {row['pid']} ({row['name']}, {row['role']} at {row['place']}, connected since {row['since']})"
            for row in await connection.fetch(_HOLDER)
        ]
        private = f"waited {turn_max_s:g} s to migrate, behind {' and '.join(holders) or 'one that has ended by now'}"
        log.error("another process migrates and does not end", detail=private)
        raise RetinueError.unavailable("postgres", private=private) from error


async def _apply(connection: "asyncpg.Connection", schema: str, file: Traversable) -> None:
    for tries_left in range(MIGRATION_TRIES_MAX - 1, -1, -1):
        try:
            async with connection.transaction():
                await connection.execute(_GIVE_WAY)
                await connection.execute(file.read_text("utf-8"))
                await connection.execute(f"insert into {schema}.migrations(name) values ($1)", file.name)  # noqa: S608
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if not tries_left:
                raise RetinueError.unavailable("postgres", private=f"{file.name} never got its locks") from error
            log.info("a migration gives way", migration=file.name, detail=str(error)[:200])
            await asyncio.sleep(MIGRATION_PAUSE_S)


def _migrations(package: str) -> list[Traversable]:
    folder = resources.files(package) / "migrations"
    return sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)


async def ping(pool: "asyncpg.Pool") -> None:
    """Raise if the server does not answer."""
    with translating():
        async with asyncio.timeout(ACQUIRE_TIMEOUT_S), pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            await connection.fetchval("select 1")


class Schema:
    """The schema that a release needs: it has seen all migrations that come with `package`."""

    def __init__(self, pool: "asyncpg.Pool", package: str, schema: str) -> None:
        self._pool = pool
        self._names = [file.name for file in _migrations(package)]
        # Superusers own the list of migrations; that it may be read by others came with one of them.
        self._missing = (
            "select n from unnest($1::text[]) n"  # noqa: S608
            f" where not exists (select from {schema}.migrations m where m.name = n) order by n"
        )
        self._complete = False

    async def check(self) -> None:
        """Raise DEPENDENCY_UNAVAILABLE if the server does not answer, or lacks a migration, which is told privately."""
        if self._complete:  # and migrations are never taken back
            await ping(self._pool)
            return
        with translating():
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S), self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                try:
                    missing = [row["n"] for row in await connection.fetch(self._missing, self._names)]
                except asyncpg.InsufficientPrivilegeError:
                    missing = self._names[-1:]
        if missing:
            private = f"the schema is older than this release: {', '.join(missing)} is to be applied"
            raise RetinueError.unavailable("postgres", private=private)
        self._complete = True

    async def wait(self) -> None:
        """Wait until the server answers and has all migrations."""
        told = ""
        while True:
            try:
                return await self.check()
            except RetinueError as error:
                if error.private != told:
                    told = error.private
                    log.warning("waiting for the database", detail=told)
            await asyncio.sleep(SCHEMA_LOOK_S)
