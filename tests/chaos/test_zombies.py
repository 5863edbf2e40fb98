"""no_stale_write: a worker of the mesh is stopped past its lease while people listen, and wakes when all is done."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from talking import assert_told_once, follow, say, shown, wait

CONTACTS = 6
"""Enough that each worker executes some of the runs."""

TOKENS = 30
ANSWER = " ".join(f"t{n}" for n in range(TOKENS))
WORKER = "worker-1"


async def total(socket: Path, name: str) -> float:
    """Read a number of a process, summed over its labels."""
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    body = (await reader.read()).decode().partition("\r\n\r\n")[2]
    writer.close()
    samples = [sample for family in text_string_to_metric_families(body) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


@pytest.mark.timeout(240)
async def test_what_a_worker_does_that_wakes_after_its_lease_is_not_seen(mesh, client, contact, all_serve, eventually):
    await all_serve()
    numbers = Path(mesh.socket(WORKER)).with_name(f"{WORKER}-metrics.sock")
    lost = await total(numbers, "retinue_leases_lost_total")
    pid = mesh.processes()[WORKER]["pid"]
    contacts = [f"{contact}-{n}" for n in range(CONTACTS)]
    amid = asyncio.Semaphore(0)
    listeners = [
        asyncio.create_task(follow(client, name, 1, lambda event: event.type == "assistant.delta" and amid.release()))
        for name in contacts
    ]
    runs = [await say(client, name, f"#tokens={TOKENS} #delay=100", name) for name in contacts]
    for _ in contacts:
        await amid.acquire()
    os.kill(pid, signal.SIGSTOP)
    try:
        ended = [await wait(client, run) for run in runs]
        heard = [await listener for listener in listeners]
    finally:
        os.kill(pid, signal.SIGCONT)
    resumed = [run for run in ended if run["attempt_count"] == 2]
    assert resumed, "none of the runs was the stopped worker's"

    async def noticed():
        return await total(numbers, "retinue_leases_lost_total") >= lost + len(resumed)

    await eventually(noticed, timeout_s=30)
    await all_serve()
    for name, run, events in zip(contacts, runs, heard, strict=True):
        assert_told_once(events, [run])
        assert shown(events) == {run: ANSWER}
        assert shown(await follow(client, name, 1)) == {run: ANSWER}, "whoever comes later sees the same"
    assert [run["state"] for run in ended] == ["succeeded"] * CONTACTS
