"""Operators are told how much waits, over all tenants, without a name."""

from datetime import UTC, datetime, timedelta


async def test_the_load_counts_what_waits_by_class(router, core, eventually):
    await core.submit(contact="anna")
    await core.submit(contact="anna")
    await core.submit(kind="extraction", log="tsk_1")
    await core.submit(kind="extraction", log="tsk_2", run_at=datetime.now(UTC) + timedelta(hours=1))

    async def counted():
        load = await router.call("GetLoad")
        queues = {q.queue_class: (q.waiting_count, q.later_count) for q in load.queues}
        return load if queues == {"chat": (2, 0), "task": (1, 1)} else None

    load = await eventually(counted)
    assert load.queues[0].oldest_wait.ToTimedelta() > timedelta(0)
    assert load.count_time.seconds
    assert (load.waiting_count_max, load.tenant_waiting_count_max) == (50_000, 5000)


async def test_the_load_counts_dead_letters_that_nobody_decided_about(router, core, eventually):
    await core.submit()
    await core.finish(await core.claim(), "failed", dead=True)

    async def counted():
        return (await router.call("GetLoad")).dead_letter_count == 1

    await eventually(counted)
