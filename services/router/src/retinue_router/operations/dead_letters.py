"""Dead letters: runs that were set aside, and what somebody decides about them."""

from retinue_kit import ids, telemetry
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_router.crash_points import Point
from retinue_router.domain import pages
from retinue_router.domain.contacts import check_name
from retinue_router.domain.queues import TASK_LOG
from retinue_router.doorbell import Doorbell
from retinue_router.operations.rooms import Rooms
from retinue_router.operations.runs import Runs
from retinue_router.store.dead_letters import DeadLetterStore
from retinue_router.store.guard import Row
from retinue_router.store.runs import NewIds

PAGE = "d"

TENANTS_MAX = 1000
"""Tenants that are counted at once, by contract; those with most open dead letters come first."""


def _not_found() -> RetinueError:
    return RetinueError(Reason.DEAD_LETTER_NOT_FOUND, "There is no such dead letter.")


class DeadLetters:
    """Dead letters of tenants."""

    def __init__(self, store: DeadLetterStore, runs: Runs, rooms: Rooms, doorbell: Doorbell) -> None:
        self._store = store
        self._runs = runs
        self._rooms = rooms
        self._doorbell = doorbell

    async def page(
        self, tenant_id: str, state: str, contact: str, page_size: int, page_token: str
    ) -> tuple[list[Row], str]:
        """List dead letters, newest first; answers the page and the token of the next one."""
        if contact:
            check_name(contact)
        before = pages.read_id(PAGE, page_token)
        rows, more = await self._store.page(tenant_id, state, contact, before, pages.size_of(page_size))
        return rows, pages.write(PAGE, rows[-1]["run_id"]) if more else ""

    async def get(self, tenant_id: str, run_id: str) -> Row:
        """Read a dead letter with what was asked. Raises DEAD_LETTER_NOT_FOUND."""
        row = await self._store.get(tenant_id, run_id)
        if row is None:
            raise _not_found()
        return row

    async def retry(self, tenant_id: str, run_id: str, by: str) -> Row:
        """Accept what was asked anew; answers the run in its place, the same one if it is asked again.

        Raises DEAD_LETTER_NOT_FOUND, DEAD_LETTER_CLOSED, and what `Runs.submit` raises where a queue is full.
        """
        new = NewIds(ids.new_id(TASK_LOG), ids.new_id("ses"), ids.new_id("run"), None)
        place = self._rooms.ask(tenant_id)
        with telemetry.span("retry_dead_letter") as span:
            reach(Point.RETRY_COMMITTING)
            answer = await self._store.retry(tenant_id, run_id, new, by, telemetry.traceparent(), place.room)
            reach(Point.RETRY_COMMITTED)
            span.set_attribute("outcome", answer["outcome"] if answer else "")
        if answer is None:
            raise _not_found()
        match answer["outcome"]:
            case "accepted":
                if answer["ring"]:
                    await self._doorbell.ring(tenant_id, answer["log_id"])
                    reach(Point.RETRY_RUNG)
            case "dropped":
                raise _closed("dropped")
            case "full":
                raise await self._rooms.refusal(tenant_id, None, place)
        return await self._runs.get(tenant_id, answer["run_id"])

    async def drop(self, tenant_id: str, run_id: str) -> Row:
        """Take a dead letter off the list; answers it. Raises DEAD_LETTER_NOT_FOUND, DEAD_LETTER_CLOSED."""
        reach(Point.DROP_COMMITTING)
        state = await self._store.drop(tenant_id, run_id)
        reach(Point.DROP_COMMITTED)
        if state is None:
            raise _not_found()
        if state == "retried":
            raise _closed(state)
        return await self.get(tenant_id, run_id)

    async def count(self, tenant_count: int) -> list[Row]:
        """Count open dead letters by tenant, up to `COUNTED_MAX` of each, those with most first."""
        return await self._store.count(tenant_count or TENANTS_MAX)


def _closed(state: str) -> RetinueError:
    return RetinueError(Reason.DEAD_LETTER_CLOSED, f"The dead letter was {state} before.", state=state)
