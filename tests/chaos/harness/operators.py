"""People who have things done by the clock, told elsewhere, or asked anew after they failed."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from harness.checks import BY_THE_CLOCK
from harness.clients import PAUSE_S
from harness.workload import END_TIMEOUT_S, MS, Person

RECORDS_MAX = 100_000


class Receiver:
    """Takes what webhooks are sent, or refuses it for as long as it is asked to."""

    def __init__(self) -> None:
        self.heard: Counter[tuple[str, str]] = Counter()
        """How often each event of a run came: path and run."""
        self.refusing: set[str] = set()
        self.refused: Counter[str] = Counter()
        """How often something was refused, by path."""
        self.url = ""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator["Receiver"]:
        """Listen on a port of this machine."""
        app = web.Application()
        app.router.add_post("/{name}", self._take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        told = await request.json()
        if name in self.refusing:
            self.refused[name] += 1
            return web.Response(status=503)
        if len(self.heard) < RECORDS_MAX:
            self.heard[name, told["data"].get("run_id", "")] += 1
        return web.Response()


async def _until(check: Any, timeout_s: float = END_TIMEOUT_S) -> bool:
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(PAUSE_S / 2)
    return True


async def despairs(person: Person) -> None:
    """Has what failed for good asked anew, several times at once; and drops it when it fails again."""
    call = person.client.call
    intent = person.script([["words", person.mark, MS], ["fail", False]], [], ["failed"])
    intent.answer = None
    dead = await person.send(intent)
    await person.ended(dead)
    path = f"/v1/dead-letters/{dead}:retry"
    answers = await asyncio.gather(*(call("POST", path, json={}) for _ in range(2)))
    runs = {answer.json()["run"]["run_id"] for answer in answers if answer is not None}
    if len(runs) > 1:
        person.client.history.errors.append(f"{dead} was asked anew as {', '.join(sorted(runs))}")
    for run in runs:
        person.client.board.acknowledged((person.client.tenant, person.contact), run)
        await person.ended(run)
        # 400: dropped by a try before this one, whose answer was lost.
        await call("POST", f"/v1/dead-letters/{run}:drop", json={}, expected=(200, 400))


async def schedules(person: Person) -> None:
    """Has a task done by the clock, whose hour is brought about; pauses it and lets it go."""
    call = person.client.call
    intent = person.script([["words", person.mark, MS]], [], kind=BY_THE_CLOCK, order=False)
    body = {"contact": person.contact, "kind": BY_THE_CLOCK, "input": {"text": intent.text}, "cron": "* * * * *"}
    made = await call("POST", "/v1/schedules", key=intent.key, json=body)
    if made is None:
        return
    schedule = made.json()["schedule"]["schedule_id"]
    last = ""
    for _ in range(2):
        await person.hurry(schedule)
        last = await _fired(person, schedule, last)
        await person.ended(last)
    await call("POST", f"/v1/schedules/{schedule}:pause", json={})
    await call("POST", f"/v1/schedules/{schedule}:resume", json={})
    # 404: removed by a try before this one, whose answer was lost.
    await call("DELETE", f"/v1/schedules/{schedule}", expected=(200, 404))


async def _fired(person: Person, schedule: str, before: str) -> str:
    """Wait for the run of a tick; answers its id."""
    end = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < end:
        response = await person.client.call("GET", f"/v1/schedules/{schedule}")
        run = response.json()["schedule"]["last_run_id"] if response is not None else before
        if run != before:
            person.client.board.acknowledged((person.client.tenant, person.contact), run)
            return str(run)
        await asyncio.sleep(PAUSE_S)
    person.client.history.errors.append(f"{schedule} did not fire in {END_TIMEOUT_S:.0f} s")
    return ""


async def listens(person: Person) -> None:
    """Has the ends of runs sent elsewhere, where they are refused for a while."""
    call, receiver = person.client.call, person.receiver
    name = f"{person.client.tenant}-{person.contact}"
    body = {"url": f"{receiver.url}/{name}", "event_types": ["run.succeeded"]}
    await _remove(person, receiver.url)  # the last one stays, so that its deliveries are purged
    made = await call("POST", "/v1/webhooks", json=body)
    if made is None:
        return
    webhook = made.json()["webhook"]["webhook_id"]
    run = await person.send(person.plain(4))
    if not await _until(lambda: receiver.heard[name, run or ""]):
        person.client.history.errors.append(f"webhook {webhook} has not heard of {run}")
    receiver.refusing.add(name)
    refused = receiver.refused[name]
    await person.ended(await person.send(person.plain(4)))
    await _until(lambda: receiver.refused[name] > refused)
    for state in ("off", "active"):
        await call("POST", f"/v1/webhooks/{webhook}:set-state", json={"state": state})
    receiver.refusing.discard(name)
    await call("POST", f"/v1/webhooks/{webhook}:test", json={})
    await _retry(person, webhook)


async def _retry(person: Person, webhook: str) -> None:
    listed = await person.client.call("GET", f"/v1/webhooks/{webhook}/deliveries")
    for delivery in (listed.json()["deliveries"] if listed is not None else [])[-1:]:
        path = f"/v1/webhooks/{webhook}/deliveries/{delivery['delivery_id']}:retry"
        # 404: it was kept long enough. 400: it is under way.
        await person.client.call("POST", path, json={}, expected=(200, 400, 404))


async def _remove(person: Person, url: str) -> None:
    """Remove the contact's webhooks, also those of a try whose answer was lost."""
    listed = await person.client.call("GET", "/v1/webhooks", params={"page_size": 200})
    for webhook in listed.json()["webhooks"] if listed is not None else []:
        if webhook["url"] == f"{url}/{person.client.tenant}-{person.contact}":
            await person.client.call("DELETE", f"/v1/webhooks/{webhook['webhook_id']}", expected=(200, 404))


WAYS = (despairs, schedules, listens)
