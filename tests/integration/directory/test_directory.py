"""The directory over gRPC, with a real Postgres: every call, in both directions."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import jwt
import pytest
from retinue.directory.v1 import directory_service_pb2 as pb
from retinue.directory.v1 import directory_service_pb2_grpc
from retinue_directory import signing
from retinue_directory.__main__ import SERVICE
from retinue_directory.domain import tokens
from retinue_directory.domain.tenants import Agent, Tenant
from retinue_directory.operations import Directory
from retinue_directory.service import DirectoryServicer
from retinue_directory.store import PostgresStore
from retinue_kit import postgres
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service


class Clock:
    def __init__(self):
        self.time = datetime(2026, 11, 21, 9, 0, tzinfo=UTC).timestamp()

    def now(self):
        return self.time

    def monotonic(self):
        return self.time


class Mesh:
    """The directory, its clock and its database."""

    def __init__(self, peer, clock, pool, database):
        self._peer = peer
        self._stub = directory_service_pb2_grpc.DirectoryServiceStub(peer.channel)
        self.clock = clock
        self.pool = pool
        self.database = database

    async def call(self, method, /, **fields):
        request = getattr(pb, f"{method}Request")(**fields)
        return await self._peer.call(getattr(self._stub, method), request)

    async def refused(self, method, /, **fields):
        with pytest.raises(RetinueError) as caught:
            await self.call(method, **fields)
        return caught.value

    async def tenant(self, name="acme"):
        return (await self.call("CreateTenant", name=name)).tenant

    async def claims(self, token):
        keys = jwt.PyJWKSet.from_json((await self.call("GetKeySet")).jwks)
        key = keys[jwt.get_unverified_header(token)["kid"]]
        options = {"verify_exp": False, "verify_iat": False}
        return jwt.decode(token, key, algorithms=["ES256"], audience="retinue", issuer="retinue", options=options)


@pytest.fixture
async def mesh(make_database, serve, peer):
    database = await make_database("retinue_directory", "directory")
    pool = await postgres.connect(database.dsn("retinue_directory"))
    clock = Clock()
    servicer = DirectoryServicer(Directory(PostgresStore(pool), signing, clock))
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    address = await serve([Service(add, servicer, SERVICE)])
    yield Mesh(peer("directory", address), clock, pool, database)
    pool.terminate()


async def test_a_tenant_is_born_with_one_agent(mesh):
    tenant = await mesh.tenant()
    assert tenant.tenant_id.startswith("ten_")
    assert (tenant.name, tenant.plan) == ("acme", "pro")
    assert tenant.agent.agent_id.startswith("agt_")
    assert tenant.agent.name == "Butler"
    assert len(tenant.agent.persona) > 50
    assert (await mesh.call("GetTenant", tenant_id=tenant.tenant_id)).tenant == tenant
    assert (await mesh.call("GetTenant", name="acme")).tenant == tenant


async def test_creating_a_tenant_many_times_at_once_makes_one(mesh):
    made = await asyncio.gather(*(mesh.tenant() for _ in range(20)))
    assert len({(tenant.tenant_id, tenant.agent.agent_id) for tenant in made}) == 1
    again = await mesh.call("CreateTenant", name="acme", plan="free")
    assert again.tenant == made[0], "what is there is answered as it is"


async def test_a_tenant_that_is_not_there_is_not_found(mesh):
    for fields in ({"tenant_id": "ten_x"}, {"name": "nobody"}):
        assert (await mesh.refused("GetTenant", **fields)).reason is Reason.TENANT_NOT_FOUND
    for method in ("UpdateTenant", "IssueToken"):
        assert (await mesh.refused(method, tenant_id="ten_x")).reason is Reason.TENANT_NOT_FOUND
    assert (await mesh.refused("GetTenant")).metadata == {"field": "tenant_id"}
    assert (await mesh.refused("GetTenant", name="a\x00")).reason is Reason.FIELD_INVALID


async def test_what_is_not_given_stays(mesh):
    tenant = await mesh.tenant()
    changed = (
        await mesh.call(
            "UpdateTenant",
            tenant_id=tenant.tenant_id,
            plan="team",
            settings=pb.TenantSettings(concurrent_run_count=3, preferred_runtime="light", weight=2.5),
        )
    ).tenant
    assert (changed.plan, changed.settings.concurrent_run_count, changed.settings.weight) == ("team", 3, 2.5)
    assert changed.agent == tenant.agent
    changed = (await mesh.call("UpdateTenant", tenant_id=tenant.tenant_id, agent=pb.Agent(model="fast"))).tenant
    assert (changed.plan, changed.settings.preferred_runtime) == ("team", "light")
    assert (changed.agent.model, changed.agent.persona) == ("fast", tenant.agent.persona)
    changed = (await mesh.call("UpdateTenant", tenant_id=tenant.tenant_id, agent=pb.Agent(model="default"))).tenant
    assert changed.agent == tenant.agent


async def test_tenants_are_listed_by_name_page_by_page(mesh):
    names = ["zeta", "Alpha", "beta", "a-1", "a.2"]
    for name in names:
        await mesh.tenant(name)
    seen, token = [], ""
    for _ in range(3):
        page = await mesh.call("ListTenants", page_size=2, page_token=token)
        seen += [tenant.name for tenant in page.tenants]
        token = page.next_page_token
    assert (seen, token) == (sorted(names), "")
    assert not page.tenants[0].HasField("agent")
    assert (await mesh.refused("ListTenants", page_token="§")).reason is Reason.CURSOR_INVALID


async def test_a_token_claims_who_its_user_is(mesh):
    tenant = await mesh.tenant()
    issued = await mesh.call("IssueToken", tenant_id=tenant.tenant_id, user="ann", scopes=["chat", "admin"])
    claims = await mesh.claims(issued.token)
    now = int(mesh.clock.time)
    assert claims.pop("sub").startswith("usr_")
    assert claims == {
        "iss": "retinue",
        "aud": "retinue",
        "tenant": tenant.tenant_id,
        "scope": "chat admin",
        "iat": now,
        "exp": now + 30 * 24 * 3600,
        "jti": issued.jti,
    }
    assert issued.expire_time.seconds == claims["exp"]


async def test_a_user_is_one_however_often_and_a_token_is_another_each_time(mesh):
    tenant, other = await mesh.tenant(), await mesh.tenant("other")
    issued = await asyncio.gather(*(mesh.call("IssueToken", tenant_id=tenant.tenant_id, user="ann") for _ in range(9)))
    issued.append(await mesh.call("IssueToken", tenant_id=other.tenant_id, user="ann"))
    claims = [await mesh.claims(one.token) for one in issued]
    assert len({one["jti"] for one in claims}) == 10
    assert len({one["sub"] for one in claims[:9]}) == 1
    assert claims[9]["sub"] != claims[0]["sub"]
    assert claims[9]["tenant"] == other.tenant_id


async def test_a_time_to_live_is_bounded_by_the_contract(mesh):
    tenant = await mesh.tenant()
    issued = await mesh.call("IssueToken", tenant_id=tenant.tenant_id, ttl=timedelta(seconds=90))
    assert issued.expire_time.seconds == int(mesh.clock.time) + 90
    for ttl in (timedelta(0), timedelta(days=366, seconds=1)):
        refused = await mesh.refused("IssueToken", tenant_id=tenant.tenant_id, ttl=ttl)
        assert (refused.reason, refused.metadata) == (Reason.FIELD_INVALID, {"field": "ttl"})


async def test_first_use_at_once_makes_one_key(mesh):
    sets = await asyncio.gather(*(mesh.call("GetKeySet") for _ in range(8)))
    assert len({one.jwks for one in sets}) == 1
    assert len(jwt.PyJWKSet.from_json(sets[0].jwks).keys) == 1


async def test_a_former_key_stays_until_its_last_token_can_have_expired(mesh):
    tenant = await mesh.tenant()
    before = await mesh.call("IssueToken", tenant_id=tenant.tenant_id, ttl=timedelta(seconds=tokens.TTL_MAX_S))
    kids = [(await mesh.call("RotateSigningKey")).kid for _ in range(2)]
    after = await mesh.call("IssueToken", tenant_id=tenant.tenant_id)
    assert jwt.get_unverified_header(after.token)["kid"] == kids[-1]
    assert (await mesh.claims(before.token))["jti"] == before.jti
    mesh.clock.time += tokens.TTL_MAX_S
    assert (await mesh.claims(before.token))["jti"] == before.jti
    mesh.clock.time += tokens.KEY_MARGIN.total_seconds() + 1
    assert [key.key_id for key in jwt.PyJWKSet.from_json((await mesh.call("GetKeySet")).jwks).keys] == kids[-1:]


async def test_rotations_and_first_uses_at_once_leave_one_key_that_signs(mesh):
    await asyncio.gather(*(mesh.call(method) for method in ("RotateSigningKey", "GetKeySet") * 5))
    admin = await asyncpg.connect(mesh.database.admin_dsn)
    assert await admin.fetchval("select count(*) from directory.signing_keys where retire_time is null") == 1
    await admin.close()


async def test_a_revocation_is_listed_newest_first_until_the_token_expires(mesh):
    for number, days in enumerate([1, 3, 2]):
        expiry = datetime.fromtimestamp(mesh.clock.time, UTC) + timedelta(days=days)
        for _ in range(2):
            await mesh.call("RevokeToken", jti=f"tok_{number}", expire_time=expiry)
        mesh.clock.time += 1
    assert (await mesh.call("ListRevocations")).jtis == ["tok_2", "tok_1", "tok_0"]
    mesh.clock.time += timedelta(days=1.5).total_seconds()
    assert (await mesh.call("ListRevocations")).jtis == ["tok_2", "tok_1"]
    mesh.clock.time += timedelta(days=9).total_seconds()
    assert (await mesh.call("ListRevocations")).jtis == []
    admin = await asyncpg.connect(mesh.database.admin_dsn)
    assert await admin.fetchval("select count(*) from directory.revoked_tokens") == 0
    await admin.close()


async def test_revocations_are_bounded(mesh, monkeypatch):
    monkeypatch.setattr("retinue_directory.operations.REVOCATIONS_MAX", 1)
    await mesh.call("RevokeToken", jti="tok_1")
    await mesh.call("RevokeToken", jti="tok_1")
    assert (await mesh.refused("RevokeToken", jti="tok_2")).reason is Reason.QUOTA_EXCEEDED
    assert (await mesh.refused("RevokeToken", jti="nonsense")).metadata == {"field": "jti"}


async def test_a_forgotten_where_shows_no_other_tenants_rows(mesh):
    one, two = await mesh.tenant("one"), await mesh.tenant("two")
    for tenant in (one, two):
        await mesh.call("IssueToken", tenant_id=tenant.tenant_id, user="ann")
    for table in ("agents", "users"):
        async with postgres.as_tenant(mesh.pool, one.tenant_id) as connection:
            rows = await connection.fetch(f"select tenant_id from directory.{table}")
        assert [row["tenant_id"] for row in rows] == [one.tenant_id]
        async with mesh.pool.acquire() as connection:
            assert await connection.fetch(f"select * from directory.{table}") == []
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with postgres.as_tenant(mesh.pool, one.tenant_id) as connection:
            await connection.execute(
                "insert into directory.users (tenant_id, user_id, name, create_time) values ($1, 'u', 'n', now())",
                two.tenant_id,
            )


async def test_a_taken_name_leaves_nothing_of_the_tenant_that_came_second(mesh):
    await mesh.tenant()
    now = datetime.fromtimestamp(mesh.clock.time, UTC)
    late = Tenant("ten_late", "acme", "pro", now, agent=Agent("agt_late"))
    assert not await PostgresStore(mesh.pool).add_tenant(late)
    assert (await mesh.refused("GetTenant", tenant_id="ten_late")).reason is Reason.TENANT_NOT_FOUND


async def test_without_postgres_each_call_is_unavailable_and_it_comes_back_by_itself(mesh, postgres_server, eventually):
    tenant = await mesh.tenant()
    postgres_server.stop()
    for method, fields in (
        ("CreateTenant", {"name": "new"}),
        ("GetTenant", {"tenant_id": tenant.tenant_id}),
        ("IssueToken", {"tenant_id": tenant.tenant_id}),
        ("ListRevocations", {}),
        ("GetKeySet", {}),
    ):
        refused = await mesh.refused(method, **fields)
        assert refused.reason is Reason.DEPENDENCY_UNAVAILABLE
        assert refused.retry_after_s
    postgres_server.start()

    async def answers():
        try:
            return (await mesh.call("GetTenant", tenant_id=tenant.tenant_id)).tenant == tenant
        except RetinueError:
            return False

    assert await eventually(answers)
