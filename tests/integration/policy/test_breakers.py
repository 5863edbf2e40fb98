"""Breakers over gRPC with a real Redis: shared by two processes of policy, lost with Redis, and harmless then."""

import asyncio

import pytest
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue.policy.v1 import policy_service_pb2_grpc
from retinue.policy.v1.breaker_pb2 import Outcome
from retinue_kit import streams
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_policy.domain.breaker import FAILURES_MAX, FAILURES_OF_ALL_MAX, Breaker
from retinue_policy.domain.preferences import RuntimeRules
from retinue_policy.domain.snapshot import Defaults, Tenant
from retinue_policy.domain.tools.ruleset import Offer
from retinue_policy.operations.breakers import LAST_KNOWN_S, Breakers, Key
from retinue_policy.operations.decisions import Deployment, Policy
from retinue_policy.operations.presence import Presence
from retinue_policy.operations.replay import Replaying
from retinue_policy.runtimes_toml import parse
from retinue_policy.service import PolicyServicer
from retinue_policy.store import INDEX, BreakerStore
from retinue_policy.store import redis_key as name_of

POLICY = "retinue.policy.v1.PolicyService"


class Clock:
    """Time that a test moves."""

    def __init__(self):
        self.time = 1_000_000.0

    def monotonic(self):
        return self.time

    def now(self):
        return self.time


class Tenants:
    """Any tenant, without settings."""

    async def tenant(self, tenant_id):
        return Tenant()


class NoPreferences:
    """An operator who prefers nothing."""

    rules = RuntimeRules()


def nothing(*_):
    """Offer no tools."""
    return Offer((), "", ())


class Member:
    """One process of policy."""

    def __init__(self, breakers, peer):
        self.breakers = breakers
        self._peer = peer
        self._stub = policy_service_pb2_grpc.PolicyServiceStub(peer.channel)

    async def decide(self, tenant="ten_a", run="run_a", runtime="auto"):
        request = pb.DecideRequest(tenant_id=tenant, run_id=run, kind="extraction", requested_runtime=runtime)
        return (await self._peer.call(self._stub.Decide, request)).decision

    async def refused(self, **asked):
        with pytest.raises(RetinueError) as caught:
            await self.decide(**asked)
        assert caught.value.reason is Reason.RUNTIME_UNAVAILABLE
        return caught.value

    async def report(self, result, count=1, *, tenants=("ten_a",), run="run_x", reason=""):
        outcomes = [
            Outcome(
                tenant_id=tenants[n % len(tenants)],
                runtime="light",
                run_id=run,
                result=result,
                reason=reason,
            )
            for n in range(count)
        ]
        await self._peer.call(self._stub.ReportOutcomes, pb.ReportOutcomesRequest(outcomes=outcomes))

    async def fail(self, count=FAILURES_MAX, reason="MODEL_UNAVAILABLE", **more):
        await self.report("failed", count, reason=reason, **more)

    async def list(self):
        response = await self._peer.call(self._stub.ListBreakers, pb.ListBreakersRequest())
        return [(each.runtime, each.tenant_id, each.state) for each in response.breakers]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def client(redis_url):
    client = streams.connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def member(serve, peer, client, clock):
    """Start another process of policy, as far as state goes; light is on, and what else is named."""

    async def start(*runtimes):
        runtimes_on = ("light", *runtimes)
        breakers = Breakers(BreakerStore(client), clock, runtimes_on)
        presence = Presence(None, clock, runtimes_on)
        deployment = Deployment(runtimes_on, frozenset(), 900.0, Defaults())
        policy = Policy(Tenants(), breakers, presence, NoPreferences(), deployment, nothing)
        add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
        return Member(
            breakers,
            peer("policy", await serve([Service(add, PolicyServicer(policy, breakers, Replaying(parse)), POLICY)])),
        )

    return start


async def test_a_breaker_that_opens_in_one_process_is_open_in_the_other_once_it_looks(member, clock):
    one, other = await member(), await member()
    await one.fail()
    assert (await one.refused()).retry_after_s == pytest.approx(1.0)
    assert not (await other.decide()).probes, "it has not looked yet"
    await other.breakers.look()
    error = await other.refused()
    assert error.metadata == {"rule": "every_runtime_failing", "runtime": "light"}
    assert await other.list() == [("light", "ten_a", "open")]


async def test_failures_are_counted_over_all_processes(member):
    one, other = await member(), await member()
    await one.fail(FAILURES_MAX - 1)
    await other.fail(1)
    await other.refused()


async def test_other_tenants_do_not_notice_one_tenants_trouble(member):
    one = await member()
    await one.fail(50)
    await one.refused()
    decision = await one.decide(tenant="ten_b")
    assert (decision.runtime, decision.probes, decision.watched) == ("light", False, True)


async def test_a_runtime_that_fails_for_several_tenants_is_kept_from_all(member):
    one = await member()
    await one.fail(FAILURES_OF_ALL_MAX, tenants=("ten_a", "ten_b", "ten_c"))
    await one.refused(tenant="ten_never_seen")
    assert (await one.list())[0] == ("light", "", "open")


async def test_a_rate_limit_speaks_of_its_tenant_alone(member):
    one = await member()
    await one.fail(100, reason="MODEL_RATE_LIMITED", tenants=("ten_a", "ten_b", "ten_c"))
    assert [tenant for _, tenant, _ in await one.list()] == ["ten_a", "ten_b", "ten_c"]
    await one.decide(tenant="ten_d")


@pytest.mark.parametrize("reason", ["MODEL_AUTH", "MODEL_CONTEXT_OVERFLOW", "FIELD_INVALID", "", "NOT_OURS"])
async def test_what_does_not_speak_against_the_runtime_opens_nothing(member, reason):
    one = await member()
    await one.fail(100, reason=reason, tenants=("ten_a", "ten_b", "ten_c"))
    assert not (await one.decide()).watched


async def test_another_runtime_takes_over_where_the_client_does_not_insist(member):
    one = await member("openclaw")
    await one.fail()
    decision = await one.decide()
    assert (decision.runtime, decision.rules[-1].rule) == ("openclaw", "light_is_failing")
    assert (await one.refused(runtime="light")).metadata["rule"] == "requested_runtime_failing"


async def test_one_probe_of_all_processes_finds_out_and_closes_it_for_all(member, clock):
    one, other = await member(), await member()
    await one.fail()
    await other.breakers.look()
    clock.time += 1.0
    assert (await one.decide(run="run_p")).probes
    assert (await other.refused(run="run_q")).retry_after_s == pytest.approx(1.0)
    assert (await one.decide(run="run_p")).probes, "a call that is repeated is answered as before"
    await one.report("succeeded", run="run_p")
    await other.breakers.look()
    for each in (one, other):
        decision = await each.decide(run="run_q")
        assert not decision.probes
        assert not decision.watched
    assert await one.list() == []


async def test_a_probe_that_fails_opens_it_for_longer(member, clock):
    one = await member()
    await one.fail()
    clock.time += 1.0
    await one.decide(run="run_p")
    await one.fail(1, run="run_p")
    assert (await one.refused()).retry_after_s == pytest.approx(2.0)


async def test_a_run_that_must_probe_for_tenant_and_runtime_holds_both_leases_or_none(member, clock, client):
    one = await member()
    await one.fail(3 * FAILURES_OF_ALL_MAX, tenants=("ten_a", "ten_b", "ten_c"))
    clock.time += 1.0
    assert (await one.decide(tenant="ten_a", run="run_a")).probes
    await one.refused(tenant="ten_b", run="run_b")
    await one.report("succeeded", run="run_a")
    assert (await one.decide(tenant="ten_b", run="run_b")).probes, "its own breaker is still to be probed"
    await one.refused(tenant="ten_b", run="run_c")
    assert not (await one.decide(tenant="ten_a", run="run_d")).probes


async def test_a_success_makes_failures_before_it_forgotten(member):
    one = await member()
    await one.fail(FAILURES_MAX - 1)
    assert (await one.decide()).watched
    await one.report("succeeded")
    await one.fail(FAILURES_MAX - 1)
    await one.decide()


async def test_an_emptied_redis_is_a_closed_breaker(member, client):
    one = await member()
    await one.fail()
    await one.refused()
    await client.flushall()
    await one.breakers.look()
    await one.decide()
    await one.fail(1)
    await one.decide()


async def test_without_redis_what_was_known_holds_for_a_while_and_is_closed_then(member, redis_server, clock):
    one, other = await member(), await member()
    await one.fail()
    redis_server.stop()
    try:
        await one.breakers.look()
        await one.refused()
        assert (await other.decide()).runtime == "light", "who knows of nothing decides as ever"
        with pytest.raises(RetinueError) as caught:
            await one.fail(1)
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        clock.time += 1.0
        assert (await one.decide()).probes, "probes that nobody counts are better than none"
        clock.time += LAST_KNOWN_S
        await one.breakers.look()
        assert not (await one.decide()).probes
    finally:
        redis_server.start()


async def test_changes_at_the_same_moment_are_all_counted(member):
    members = [await member() for _ in range(FAILURES_MAX)]
    await asyncio.gather(*(each.fail(1) for each in members))
    assert await members[0].list() == [("light", "ten_a", "open")]


async def test_keys_bear_their_tenant_and_expire(member, client):
    one = await member()
    await one.fail(tenants=("ten_a",))
    assert name_of(Key("light", "ten_a")) == "t:ten_a:breaker:light"
    for key in await client.keys("*breaker:*"):
        assert 0 < await client.pttl(key) <= 600_000
    assert await client.zrange(INDEX, 0, -1) == [b"light ten_a"]


async def test_what_another_version_wrote_counts_as_closed(member, client):
    one = await member()
    await client.set(name_of(Key("light", "")), b"\xff not ours")
    await one.breakers.look()
    await one.decide()
    await one.fail(1)
    found = await BreakerStore(client).read(("light",), one.breakers._clock.now())
    assert found[Key("light", "")] == Breaker(failures=1, tenants=("ten_a",), heard=1_000_000.0)
