"""Clients that do what the public contract asks of them: repeat with the same key, resume by cursor, obey rewinds."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx

PATIENCE_S = 60
RETRY_S = 0.05
TRY_AGAIN = (429, 502, 503, 504)
TERMINAL = ("run.succeeded", "run.failed", "run.cancelled")


class Heard(NamedTuple):
    """An event as it came."""

    cursor: tuple[int, ...]
    type: str
    run_id: str
    data: dict[str, Any]


async def patiently(call: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Repeat a request while the answer says that it may be repeated, or the connection is cut."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            response = await call()
            if response.status_code not in TRY_AGAIN:
                return response
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "no answer for a minute"
        await asyncio.sleep(RETRY_S)


async def say(client: httpx.AsyncClient, contact: str, text: str, key: str) -> str:
    """Send a message through whatever happens; answers its run."""
    path = f"/v1/contacts/{contact}/messages"
    response = await patiently(lambda: client.post(path, json={"text": text}, headers={"idempotency-key": key}))
    assert response.status_code == 200, response.text
    return str(response.json()["run"]["run_id"])


async def wait(client: httpx.AsyncClient, run: str) -> dict[str, Any]:
    """Wait for a run's end through whatever happens."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found: dict[str, Any] = (await patiently(lambda: client.post(f"/v1/runs/{run}:wait"))).json()["run"]
        if found["state"] in ("succeeded", "failed", "cancelled"):
            return found
        assert time.monotonic() < end, f"{run} is still {found['state']}"


async def follow(
    client: httpx.AsyncClient, contact: str, count: int, heard: Callable[[Heard], object] = lambda event: None
) -> list[Heard]:
    """Follow a contact's stream through every cut until so many runs have ended; `heard` is told of each event."""
    last, events = "0-0", []
    end = time.monotonic() + 2 * PATIENCE_S
    while sum(event.type in TERMINAL for event in events) < count:
        assert time.monotonic() < end, f"not all of {count} ends heard"
        try:
            headers = {"last-event-id": last}
            async with client.stream("GET", f"/v1/contacts/{contact}/events", headers=headers, timeout=20) as response:
                if response.status_code != 200:
                    await asyncio.sleep(RETRY_S)
                    continue
                fields: dict[str, str] = {}
                async for line in response.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name:
                        fields[name] = value
                    elif "id" in fields:
                        last = fields["id"]
                        told = json.loads(fields["data"])
                        event = Heard(tuple(map(int, last.split("-"))), fields["event"], told["run_id"], told["data"])
                        events.append(event)
                        heard(event)
                        if sum(event.type in TERMINAL for event in events) == count:
                            break
                    if not name:
                        fields = {}
        except httpx.TransportError:
            await asyncio.sleep(RETRY_S)
    return events


def shown(events: list[Heard]) -> dict[str, str]:
    """What a client shows of each run from its deltas alone, rewinding where it is told to."""
    kept: list[Heard] = []
    for event in events:
        if "rewind_to" in event.data and event.type == "run.resumed":
            rewind = tuple(map(int, event.data["rewind_to"].split("-")))
            kept = [one for one in kept if one.cursor <= rewind]
        kept.append(event)
    texts: dict[str, str] = {}
    for event in kept:
        if event.type == "assistant.delta":
            before = "" if event.data.get("replace") else texts.get(event.run_id, "")
            texts[event.run_id] = before + event.data["text"]
    return texts


def assert_told_once(events: list[Heard], runs: list[str]) -> None:
    """Hold a stream to `cursor_monotone` and `session_order`: every run told once, in order, with one end."""
    cursors = [event.cursor for event in events]
    assert cursors == sorted(set(cursors)), "each event once, in order"
    for kind in ("user.message", "assistant.message", "run.succeeded"):
        assert [event.run_id for event in events if event.type == kind] == runs, kind
