"""Accepting runs, reading them, asking them to stop."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from retinue_kit import ids, telemetry
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_router.crash_points import Point
from retinue_router.domain import pages
from retinue_router.domain.contacts import check_name, log_id_of
from retinue_router.domain.queues import TASK_LOG
from retinue_router.domain.submission import Submission
from retinue_router.doorbell import Doorbell
from retinue_router.operations.rooms import Rooms
from retinue_router.store.guard import Row
from retinue_router.store.runs import NewIds, RunStore

PAGE = "r"


def not_found() -> RetinueError:
    """Say that there is no such run; another tenant's looks the same."""
    return RetinueError(Reason.RUN_NOT_FOUND, "There is no such run.")


class Runs:
    """Runs of tenants."""

    def __init__(self, store: RunStore, rooms: Rooms, doorbell: Doorbell) -> None:
        self._store = store
        self._rooms = rooms
        self._doorbell = doorbell

    async def submit(self, asked: Submission) -> tuple[Row, bool]:
        """Accept a run; answers it and whether its key had been used before.

        What was accepted is committed: it reaches a terminal state whatever dies. Raises QUOTA_EXCEEDED or QUEUE_FULL
        where no more may wait; a key that was used before is answered all the same.
        """
        asked.check(datetime.now(UTC))
        log_id = log_id_of(asked.tenant_id, asked.contact)
        new = NewIds(
            ids.new_id(TASK_LOG) if asked.is_task else log_id,
            ids.new_id("ses"),
            ids.new_id("run"),
            log_id if asked.is_task else None,
        )
        traceparent = telemetry.traceparent()
        place = self._rooms.ask(asked.tenant_id, asked.run_at)
        with self._rooms.accepting(), telemetry.span("submit_run") as span:
            span.set_attribute("run.kind", asked.kind)
            reach(Point.SUBMIT_COMMITTING)
            answer = await self._store.submit(asked, new, body_of(asked), traceparent, place.room)
            reach(Point.SUBMIT_COMMITTED)
            span.set_attribute("run.id", answer["run_id"] or "")
            span.set_attribute("outcome", answer["outcome"])
        if answer["outcome"] == "accepted":
            self._rooms.hear(asked.tenant_id, asked.run_at, answer["queued"])
            await self._tell(asked.tenant_id, new.log_id, answer)
            reach(Point.SUBMIT_RUNG)
            return _accepted(asked, new, answer, traceparent), False
        if answer["outcome"] == "replay":
            return await self.get(asked.tenant_id, answer["run_id"]), True
        if answer["outcome"] == "full":
            raise await self._rooms.refusal(asked.tenant_id, asked.run_at, place)
        raise _refusal(answer)

    async def get(self, tenant_id: str, run_id: str) -> Row:
        """Read a run. Raises RUN_NOT_FOUND."""
        row = await self._store.get(tenant_id, run_id)
        if row is None:
            raise not_found()
        return row

    async def page(
        self, tenant_id: str, contact: str, state: str, page_size: int, page_token: str
    ) -> tuple[list[Row], str]:
        """List runs, newest first; answers the page and the token of the next one."""
        if contact:
            check_name(contact)
        size = pages.size_of(page_size)
        rows, more = await self._store.page(tenant_id, contact, state, pages.read_id(PAGE, page_token), size)
        return rows, pages.write(PAGE, rows[-1]["run_id"]) if more else ""

    async def cancel(self, tenant_id: str, run_id: str, by: str) -> Row:
        """Ask a run to stop; answers it as it is then. Raises RUN_NOT_FOUND."""
        reach(Point.CANCEL_COMMITTING)
        answer = await self._store.cancel(tenant_id, run_id, by)
        reach(Point.CANCEL_COMMITTED)
        if answer is None:
            raise not_found()
        await self._tell(tenant_id, answer["log_id"], answer)
        if answer["told"]:
            await self._doorbell.ring(tenant_id, answer["told"])
        reach(Point.CANCEL_TOLD)
        return await self.get(tenant_id, run_id)

    async def _tell(self, tenant_id: str, log_id: str, answer: Row) -> None:
        if answer["ring"]:
            with telemetry.span("ring"):
                await self._doorbell.ring(tenant_id, log_id)
        elif answer["poke"]:
            await self._doorbell.poke(answer["poke"], tenant_id, log_id)


def body_of(asked: Submission) -> bytes:
    """Write what the run is made from, for the worker."""
    return msgspec.json.encode(
        {
            "message_id": ids.new_id("msg"),
            "text": asked.said(),
            "runtime": asked.runtime,
            "on_busy": asked.on_busy,
            "metadata": asked.metadata,
            "reasoning": asked.reasoning,
            "context": asked.context,
            "parameters": asked.parameters,
            "input": asked.input,
            "principal": asked.principal,
        }
    )


def _accepted(asked: Submission, new: NewIds, answer: Row, traceparent: str) -> Mapping[str, Any]:
    """Make the row of a run that was just accepted, without reading it."""
    return {
        "tenant_id": asked.tenant_id,
        "run_id": new.run_id,
        "contact": asked.contact,
        "session_id": answer["session_id"],
        "log_id": new.log_id,
        "kind": asked.kind,
        "state": "queued",
        "runtime": None,
        "attempt": 0,
        "create_time": answer["create_time"],
        "start_time": None,
        "end_time": None,
        "output": None,
        "usage": None,
        "error": None,
        "after_token": answer["after_token"],
        "after_n": answer["after_n"],
        "traceparent": traceparent,
        "decision": None,
        "run_at": asked.run_at,
    }


def _refusal(answer: Row) -> RetinueError:
    match answer["outcome"]:
        case "key_reused":
            return RetinueError(
                Reason.IDEMPOTENCY_KEY_REUSED,
                "The idempotency key was used with another request.",
                run_id=answer["run_id"],
            )
        case "busy":
            return RetinueError(Reason.SESSION_BUSY, "Another run of the session is active.")
        case _:
            return RetinueError(Reason.RUN_NOT_FOUND, "The run of this idempotency key was deleted with its contact.")
