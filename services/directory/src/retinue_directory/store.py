"""The directory in Postgres. Each query stands beside the only method that makes it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime

import asyncpg
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.postgres import ACQUIRE_TIMEOUT_S, as_tenant, translating

from retinue_directory.domain.tenants import Agent, Settings, Tenant
from retinue_directory.domain.tokens import SigningKey

_TENANT = "t.tenant_id, t.name, t.plan, t.concurrent_run_count, t.preferred_runtime, t.weight, t.create_time"
_KEY = "kid, private_key, create_time, retire_time"


class PostgresStore:
    """Implements operations.Store over schema `directory`."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    @asynccontextmanager
    async def _deployment(self) -> AsyncIterator["asyncpg.Connection"]:
        """Open a transaction outside of any tenant: tenant-walled tables look empty."""
        with translating(), _naming():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                yield connection

    @asynccontextmanager
    async def _tenant(self, tenant_id: str) -> AsyncIterator["asyncpg.Connection"]:
        with _naming():
            async with as_tenant(self._pool, tenant_id) as connection:
                yield connection

    async def add_tenant(self, tenant: Tenant) -> bool:
        assert tenant.agent is not None
        async with self._tenant(tenant.tenant_id) as connection:
            # The loser of a race waits here for the winner's commit, so that it can read what the winner made.
            added = await connection.fetchval(
                """insert into directory.tenants (tenant_id, name, plan, create_time) values ($1, $2, $3, $4)
                   on conflict on constraint tenants_name_unique do nothing returning true""",
                tenant.tenant_id,
                tenant.name,
                tenant.plan,
                tenant.create_time,
            )
            if added:
                agent = tenant.agent
                await connection.execute(
                    """insert into directory.agents (tenant_id, agent_id, name, persona, model)
                       values ($1, $2, $3, $4, $5)""",
                    tenant.tenant_id,
                    agent.agent_id,
                    agent.name,
                    agent.persona,
                    agent.model,
                )
        return bool(added)

    async def tenant_id(self, name: str) -> str:
        async with self._deployment() as connection:
            return await connection.fetchval("select tenant_id from directory.tenants where name = $1", name) or ""

    async def tenant(self, tenant_id: str) -> Tenant | None:
        async with self._tenant(tenant_id) as connection:
            row = await connection.fetchrow(
                f"""select {_TENANT}, a.agent_id, a.name as agent_name, a.persona, a.model
                    from directory.tenants t join directory.agents a using (tenant_id) where t.tenant_id = $1""",  # noqa: S608
                tenant_id,
            )
        return row and _tenant(row, Agent(row["agent_id"], row["agent_name"], row["persona"], row["model"]))

    async def update_tenant(self, tenant_id: str, plan: str, settings: Settings | None) -> None:
        async with self._deployment() as connection:
            if plan:
                await connection.execute("update directory.tenants set plan = $2 where tenant_id = $1", tenant_id, plan)
            if settings is not None:
                await connection.execute(
                    """update directory.tenants set concurrent_run_count = $2, preferred_runtime = $3, weight = $4
                       where tenant_id = $1""",
                    tenant_id,
                    settings.concurrent_run_count,
                    settings.preferred_runtime,
                    settings.weight,
                )

    async def update_agent(self, tenant_id: str, agent: Agent) -> None:
        async with self._tenant(tenant_id) as connection:
            await connection.execute(
                "update directory.agents set name = $2, persona = $3, model = $4 where tenant_id = $1",
                tenant_id,
                agent.name,
                agent.persona,
                agent.model,
            )

    async def tenants(self, after: str, count: int) -> Sequence[Tenant]:
        async with self._deployment() as connection:
            rows = await connection.fetch(
                f"select {_TENANT} from directory.tenants t where name > $1 order by name limit $2",  # noqa: S608
                after,
                count,
            )
        return [_tenant(row, None) for row in rows]

    async def user_id(self, tenant_id: str, name: str, new_user_id: str, now: datetime) -> str:
        async with self._tenant(tenant_id) as connection:
            await connection.execute(
                """insert into directory.users (tenant_id, user_id, name, create_time) values ($1, $2, $3, $4)
                   on conflict on constraint users_name_unique do nothing""",
                tenant_id,
                new_user_id,
                name,
                now,
            )
            found = await connection.fetchval(
                "select user_id from directory.users where tenant_id = $1 and name = $2", tenant_id, name
            )
        return str(found)

    async def signing_key(self) -> SigningKey | None:
        async with self._deployment() as connection:
            row = await connection.fetchrow(f"select {_KEY} from directory.signing_keys where retire_time is null")  # noqa: S608
        return row and SigningKey(**row)

    async def add_signing_key(self, key: SigningKey, *, replace: bool) -> None:
        async with self._deployment() as connection:
            # One at a time, so that a rotation is never refused because of a first use beside it.
            await connection.execute("select pg_advisory_xact_lock(hashtext('directory.signing_keys'))")
            if replace:
                await connection.execute(
                    "update directory.signing_keys set retire_time = $1 where retire_time is null", key.create_time
                )
            await connection.execute(
                """insert into directory.signing_keys (kid, private_key, create_time)
                   select $1, $2, $3 where not exists (select from directory.signing_keys where retire_time is null)""",
                key.kid,
                key.private_key,
                key.create_time,
            )

    async def keys(self, retired_since: datetime) -> Sequence[SigningKey]:
        async with self._deployment() as connection:
            await connection.execute("delete from directory.signing_keys where retire_time < $1", retired_since)
            rows = await connection.fetch(
                f"select {_KEY} from directory.signing_keys order by retire_time desc nulls first"  # noqa: S608
            )
        return [SigningKey(**row) for row in rows]

    async def revoke(self, jti: str, expire_time: datetime, now: datetime, count_max: int) -> bool:
        async with self._deployment() as connection:
            return bool(
                await connection.fetchval(
                    """insert into directory.revoked_tokens (jti, expire_time, create_time)
                       select $1, $2, $3 where (select count(*) from directory.revoked_tokens where jti <> $1) < $4
                       on conflict (jti) do update
                       set expire_time = greatest(directory.revoked_tokens.expire_time, excluded.expire_time)
                       returning true""",
                    jti,
                    expire_time,
                    now,
                    count_max,
                )
            )

    async def revoked(self, now: datetime, count_max: int) -> Sequence[str]:
        async with self._deployment() as connection:
            await connection.execute("delete from directory.revoked_tokens where expire_time <= $1", now)
            rows = await connection.fetch(
                "select jti from directory.revoked_tokens order by create_time desc, jti limit $1", count_max
            )
        return [row["jti"] for row in rows]


@contextmanager
def _naming() -> Iterator[None]:
    """Turn what the database refuses into what the caller did wrong, by the name of the constraint."""
    try:
        yield
    except asyncpg.ForeignKeyViolationError as error:
        if error.constraint_name not in ("users_tenant_known", "agents_tenant_known"):
            raise
        raise RetinueError(Reason.TENANT_NOT_FOUND, "There is no such tenant.") from error
    except asyncpg.CharacterNotInRepertoireError as error:  # the one character that Postgres cannot hold
        raise RetinueError.field("request", "must not hold a NUL character.") from error


def _tenant(row: "asyncpg.Record", agent: Agent | None) -> Tenant:
    settings = Settings(row["concurrent_run_count"], row["preferred_runtime"], row["weight"])
    return Tenant(row["tenant_id"], row["name"], row["plan"], row["create_time"], settings, agent)
