"""After so many messages of a contact a task looks for facts in them: once, behind no chat, and heard by nobody."""

import asyncio
import json

from retinue_kit import ids
from retinue_router.crash_points import Point

TENANT = "ten_a"


def asked(mesh):
    """What the runtime was asked by tasks of this kind, as the lines of the conversation."""
    texts = [request.text for request in mesh.adapter.requests if request.kind == "memory.extract"]
    return [text[text.index("remember.\n\n") + 11 :].split("\n") for text in texts]


async def tasks(mesh, contact="ada"):
    return await mesh.admin.fetch(
        "select * from router.runs where contact = $1 and kind <> 'chat' order by run_id", contact
    )


async def say(mesh, when_over, *texts, contact="ada"):
    for text in texts:
        row = await when_over(await mesh.submit(text, contact=contact))
        assert row["state"] == "succeeded"


async def test_a_part_of_so_many_messages_is_read_once_and_the_next_begins_behind_it(mesh, when_over, eventually):
    workers = [await mesh.start_worker(memory_extract_every=3) for _ in range(2)]
    await say(mesh, when_over, "one", "two", "three", "four", "five")
    await eventually(lambda: len(asked(mesh)) == 1)
    await say(mesh, when_over, "six")
    await eventually(lambda: len(asked(mesh)) == 2)
    first, second = asked(mesh)
    assert first == ["user: one", "assistant: one ", "user: two", "assistant: two ", "user: three", "assistant: three "]
    # What was answered to the last message of a part is read with it, and stands before the next.
    assert second == ["assistant: three ", *(f"{who}: {n}{end}" for n in ("four", "five", "six") for who, end in WHO)]
    ended = [await when_over(row["run_id"]) for row in await tasks(mesh)]
    assert [row["state"] for row in ended] == ["succeeded", "succeeded"]
    for worker in workers:
        await worker.aclose()
    assert len(await tasks(mesh)) == 2
    assert all(row["log_id"].startswith("tsk_") for row in ended)
    assert "task.finished" not in await mesh.types()
    assert (await mesh.admin.fetchval("select count(*) from router.mail")) == 0


WHO = (("user", ""), ("assistant", " "))


async def test_with_0_nothing_is_ever_read(mesh, when_over):
    async with await mesh.start_worker(memory_extract_every=0):
        await say(mesh, when_over, *"abcde")
    assert await tasks(mesh) == []


async def test_one_effect_a_part_is_read_once_wherever_a_worker_dies(mesh, launch, when_over, eventually):
    for point in (Point.EXTRACT_COMMITTING, Point.EXTRACT_COMMITTED):
        folder, contact = mesh.workspaces / str(point), f"c-{point.name}"
        (folder / "armed").mkdir(parents=True)
        (folder / "armed" / point).write_text("kill")
        values = {
            **mesh.settings, "address": f"unix:{mesh.workspaces}/{ids.new_id('w')}.sock", "memory_extract_every": "2",
            "lease_s": "1.2", "renew_s": "0.3",
        }  # fmt: skip
        environ = {f"RETINUE_{name.upper()}": value for name, value in values.items()}
        dying = launch("retinue_router.worker", **environ, RETINUE_CRASH_DIR=str(folder))
        await say(mesh, when_over, "one", "two", contact=contact)
        assert await asyncio.to_thread(dying.wait, 30) != 0
        async with await mesh.start_worker(memory_extract_every=2):
            await say(mesh, when_over, "three", contact=contact)
            (row,) = await eventually(lambda contact=contact: tasks(mesh, contact))
            await when_over(row["run_id"])
        (row,) = await tasks(mesh, contact)
        assert (row["state"], row["attempt"]) == ("succeeded", 1), point


async def test_no_zombie_a_contact_that_is_deleted_takes_its_tasks_along_and_is_not_made_anew(mesh, when_over):
    async with await mesh.start_worker(memory_extract_every=2):
        await say(mesh, when_over, "one", "two", "three")
    row = await mesh.admin.fetchrow("select * from router.runs where kind = 'memory.extract'")
    assert row["notify_log"] == "log_ada"
    part = json.loads(row["input"])["metadata"]
    token, n = map(int, part["through"].split("-"))

    async def ask(key):
        return await mesh.pool.fetchval(
            "select outcome from submit_unread_1($1,'ada','log_ada',$2,$3,$4,$5,$6,$7,$8,$9,$10,'{}',9,9)",
            TENANT, part["session_id"], token, n, ids.new_id("tsk"), ids.new_id("ses"), ids.new_id("run"),
            "memory.extract", key, b"d",
        )  # fmt: skip

    assert await ask("another") == "accepted"
    await mesh.pool.fetch("select * from delete_contact_1($1, 'ada', 'log_ada')", TENANT)
    assert await mesh.admin.fetchval("select count(*) from router.runs") == 0
    assert await ask("late") == "deleted"
    await mesh.submit("hello again", ring=False)
    assert await ask("later") == "deleted"
    assert await tasks(mesh) == []
