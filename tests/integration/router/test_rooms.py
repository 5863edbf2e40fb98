"""Queues are bounded: who finds no room is told so, and when there will be some; what was accepted before stays so."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from retinue.router.v1 import dead_letter_service_pb2 as wire
from retinue.router.v1 import dead_letter_service_pb2_grpc as wire_grpc
from retinue_kit import postgres
from retinue_kit.errors import Reason, RetinueError
from retinue_router.worker.sweeper import KEY_AGE_MAX

FIVE = pytest.mark.parametrize("router", [{"tenant_waiting_count": 5, "tenant_later_count": 3}], indirect=True)
HUNDRED = pytest.mark.parametrize("router", [{"tenant_waiting_count": 100}], indirect=True)
TEN_IN_ALL = pytest.mark.parametrize("router", [{"waiting_count": 10}], indirect=True)


async def refusal(router, **fields):
    """Submit what is refused; answers the error."""
    with pytest.raises(RetinueError) as caught:
        await router.submit(**fields)
    return caught.value


@FIVE
async def test_bounded_a_tenant_s_queue_takes_so_many_and_says_when_to_come_back(router):
    for n in range(5):
        await router.submit(contact=f"c{n % 2}")
    error = await refusal(router)
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert 1 <= error.retry_after_s <= 60
    assert error.metadata == {"quota": "waiting_runs", "limit": "5"}
    assert "try again in" in error.message
    assert (await refusal(router, kind="extraction", input={"a": 1})).reason is Reason.QUOTA_EXCEEDED
    await router.submit(tenant_id="ten_b")


@FIVE
async def test_same_key_same_answer_holds_where_the_queue_is_full(router):
    first = await router.submit("hello", idempotency_key="k1")
    for _ in range(4):
        await router.submit()
    for _ in range(2):  # counted, and taken for full
        assert (await refusal(router)).reason is Reason.QUOTA_EXCEEDED
        assert (await router.submit("hello", idempotency_key="k1")).run_id == first.run_id
        error = await refusal(router, text="other", idempotency_key="k1")
        assert error.reason is Reason.IDEMPOTENCY_KEY_REUSED


@FIVE
async def test_bounded_what_begins_later_has_a_bound_of_its_own(router, core):
    soon, late = Timestamp(), Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=50))
    late.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    for when in (late, soon, late):
        await router.submit(kind="extraction", run_at=when.ToJsonString())
    for _ in range(5):
        await router.submit()
    error = await refusal(router, kind="extraction", run_at=late.ToJsonString())
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert error.metadata == {"quota": "later_runs", "limit": "3"}
    assert 5 <= error.retry_after_s <= 50, "then the first of them comes due, whatever waits besides"


@TEN_IN_ALL
async def test_bounded_the_whole_queue_takes_so_many_from_all_tenants_together(router, eventually):
    first = await router.submit("hello", tenant_id="ten_0", idempotency_key="k1")
    for n in range(1, 10):
        await router.submit(tenant_id=f"ten_{n}")

    async def counted():
        load = await router.call("GetLoad")
        return sum(queue.waiting_count for queue in load.queues) == 10

    await eventually(counted)
    error = await refusal(router, tenant_id="ten_new")
    assert error.reason is Reason.QUEUE_FULL
    assert 1 <= error.retry_after_s <= 60
    assert "ten_" not in str(error)
    again = await router.submit("hello", tenant_id="ten_0", idempotency_key="k1")
    assert again.run_id == first.run_id


@HUNDRED
async def test_who_heeds_retry_after_finds_room_in_a_queue_that_drains(router, core, eventually):
    pace = 5
    for n in range(100):
        await core.submit(contact=f"c{n}")
    await core.admin.execute("update router.runs set create_time = create_time - interval '1 minute'")
    await core.admin.execute(
        "insert into router.usage_logs (tenant_id, run_id, attempt, agent_id, runtime, model, message_count,"
        " input_tokens, output_tokens, create_time) select 'ten_a', 'run_' || n, 1, '', '', '', 1, 0, 0,"
        " clock_timestamp() - make_interval(secs => n::float / $1) from generate_series(1, 60 * $1) n",
        pace,
    )
    error = await refusal(router)
    assert error.retry_after_s in (2, 3), "ten of a hundred, at five a second"
    for n in range(int(error.retry_after_s * pace)):
        held = await core.claim(f"log_c{n}")
        await core.finish(held, log=f"log_c{n}")

    async def accepted():
        try:
            return await router.submit()
        except RetinueError:
            return None

    await eventually(accepted, timeout_s=5)


@FIVE
async def test_bounded_a_dead_letter_is_not_asked_anew_while_there_is_no_room(router, core):
    await core.submit()
    await core.finish(await core.claim(), "failed", dead=True)
    (dead,) = await core.seen("select run_id from router.runs")
    stub = wire_grpc.DeadLetterServiceStub(router.peer.channel)
    for _ in range(5):
        await router.submit(contact="other")
    with pytest.raises(RetinueError) as caught:
        await router.peer.call(stub.RetryDeadLetter, wire.RetryDeadLetterRequest(tenant_id="ten_a", **dead))
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert (await core.run(dead["run_id"]))["dead"] == "open"


@FIVE
async def test_bounded_a_burst_at_one_instant_goes_above_the_bound_by_connections_at_most(router, core):
    tries = await asyncio.gather(*(router.submit(contact=f"c{n}") for n in range(60)), return_exceptions=True)
    assert {error.reason for error in tries if isinstance(error, RetinueError)} == {Reason.QUOTA_EXCEEDED}
    (count,) = await core.seen("select count(*) from router.runs")
    assert 5 <= count["count"] <= 5 + 16


async def test_keys_of_deleted_contacts_are_kept_and_then_removed_in_batches(core, database):
    await core.admin.execute(
        "insert into router.deleted_keys select 'ten_a', 'k' || n, 'd', 'run_' || n,"
        " clock_timestamp() - make_interval(days => n) from generate_series(1, 40) n"
    )
    pool = await postgres.connect(database.dsn("retinue_sweep"), max_size=1)
    purge = "select purge_keys_1($1, $2)"
    assert [await pool.fetchval(purge, KEY_AGE_MAX, 6) for _ in range(3)] == [6, 5, 0]
    kept = await core.seen(
        "select min(delete_time) > clock_timestamp() - interval '30 days', count(*) from router.deleted_keys"
    )
    assert [tuple(row) for row in kept] == [(True, 29)]
    with pytest.raises(Exception, match="permission denied"):
        await pool.fetch("select idem_key from deleted_keys")
    await pool.close()
