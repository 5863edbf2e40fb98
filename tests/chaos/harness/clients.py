"""A client as the contract asks for one: repeats with the same key what may be repeated, and writes down the rest."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from harness.board import Board
from harness.history import Answer, Event, History, Intent, parse_cursor

PATIENCE_S = 60.0
"""No fault of the sweep lasts longer than a few seconds; who gets no answer for so long never will."""

PAUSE_S = 0.1
"""Between two tries: less than a client would take, so that it meets as many moments of a recovery as there are."""

READ_TIMEOUT_S = 20.0
"""A stream says something every fifteen seconds."""

RETRYABLE = (429, 503)
RESUMABLE = ("DRAINING", "SLOW_CONSUMER", "DEPENDENCY_UNAVAILABLE")
"""Reasons with which a stream may end before its time."""


class Client:
    """One tenant's."""

    def __init__(self, url: str, tenant: str, token: str, history: History, board: Board) -> None:
        self.tenant = tenant
        self.url = url
        self.token = token
        self.history = history
        self.board = board
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=5.0)
        self.http = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=timeout, limits=limits, trust_env=False,
            verify=False,
        )  # fmt: skip

    async def call(
        self, method: str, path: str, *, expected: tuple[int, ...] = (200,), key: str = "", **more: Any
    ) -> httpx.Response | None:
        """Ask until there is an answer; None if it is one that no client should get, or patience is at its end."""
        headers = {"idempotency-key": key} if key else {}
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                response = await self.http.request(method, path, headers=headers, **more)
            except httpx.TransportError:
                await asyncio.sleep(PAUSE_S)
                continue
            if response.status_code in expected:
                return response
            if not self.may_repeat(method, path, response):
                return None
            await asyncio.sleep(PAUSE_S)
        self.history.errors.append(f"{method} {path}: no answer for {PATIENCE_S:.0f} s")
        return None

    def may_repeat(self, method: str, path: str, response: httpx.Response) -> bool:
        """Whether an answer says that the request may be repeated; what no client should get is written down."""
        told = f"{method} {path}: {response.status_code} {response.text[:300]}"
        if response.status_code not in RETRYABLE:
            self.history.errors.append(told)
            return False
        if "retry-after" not in response.headers:
            self.history.errors.append(f"{told} without Retry-After")
        return True

    async def submit(
        self, intent: Intent, path: str, body: dict[str, Any], *, refused: tuple[int, ...] = ()
    ) -> str | None:
        """Have a run accepted; answers its id. None if it was refused with one of the given codes."""
        self.history.intents.append(intent)
        return await self.repeat(intent, path, body, refused=refused)

    async def repeat(
        self, intent: Intent, path: str, body: dict[str, Any], *, refused: tuple[int, ...] = ()
    ) -> str | None:
        """The same request again, as another replica of the client would send it."""
        response = await self.call("POST", path, key=intent.key, json=body, expected=(200, *refused))
        if response is None:
            return None
        if response.status_code in refused:
            self.answered(intent, "refused", response.status_code, "", response.text[:300])
            return None
        run_id = str(response.json()["run"]["run_id"])
        self.answered(intent, "acknowledged", 200, run_id)
        return run_id

    def answered(self, intent: Intent, outcome: str, status: int, run_id: str, detail: str = "") -> None:
        """Write an answer down."""
        answer = Answer(intent.tenant, intent.contact, intent.key, outcome, status, run_id, detail)
        self.history.answers.append(answer)
        if outcome == "acknowledged":
            self.board.acknowledged((intent.tenant, intent.contact), run_id)

    async def events(self, path: str, after: str = "", **request: Any) -> AsyncIterator[Event]:
        """Read one stream until it ends or is cut, which is no error. Frames without a cursor are passed over."""
        headers = {**request.pop("headers", {}), **({"last-event-id": after} if after else {})}
        method = request.pop("method", "GET")
        try:
            async with self.http.stream(method, path, headers=headers, **request) as response:
                if response.status_code != 200:
                    await response.aread()
                    self.may_repeat(method, path, response)
                    return
                fields: dict[str, str] = {}
                async for line in response.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name:
                        fields[name] = value
                        continue
                    if fields.get("event") == "error":
                        self.check_end(path, json.loads(fields["data"]))
                        return
                    if "id" in fields:
                        yield read_event(json.loads(fields["data"]))
                    fields = {}
        except (httpx.TransportError, httpx.StreamError):
            return

    def check_end(self, path: str, error: dict[str, Any]) -> None:
        """Write an error down that ends a stream, unless it is one after which a client resumes."""
        reasons = [detail.get("reason") for detail in error.get("details", [])]
        if not any(reason in RESUMABLE for reason in reasons):
            self.history.errors.append(f"{path}: the stream ended with {error}")


def read_event(told: dict[str, Any]) -> Event:
    """Read an event's public form."""
    return Event(parse_cursor(told["cursor"]), told["type"], told["run_id"], told["data"])
