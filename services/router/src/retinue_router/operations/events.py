"""Reading and watching the logs of contacts and tasks."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from retinue_kit import streams
from retinue_kit.streams import Cursor, Entry
from retinue_kit.watch import DurablePage
from retinue_kit.watching import Subscriber

from retinue_router.domain.contacts import check_name, log_id_of
from retinue_router.domain.events import TERMINAL
from retinue_router.operations.runs import not_found
from retinue_router.store.events import EventStore, LogKey
from retinue_router.store.runs import RunStore

PAGE_SIZE_DEFAULT = 500
"""Events of a page where the caller leaves it open, and of each page that a watcher catches up with."""


class Logs:
    """Logs of tenants."""

    def __init__(self, events: EventStore, runs: RunStore, subscriber: Subscriber) -> None:
        self._events = events
        self._runs = runs
        self._subscriber = subscriber

    async def find(self, tenant_id: str, contact: str) -> tuple[str, Cursor]:
        """Name the log of a contact, which need not exist yet; answers it with its last durable cursor."""
        check_name(contact)
        log_id = log_id_of(tenant_id, contact)
        return log_id, await self._events.last(tenant_id, log_id)

    async def page(
        self, tenant_id: str, log_id: str, run_id: str, after: str, page_size: int
    ) -> tuple[list[Entry], bool]:
        """Read durable events in order, and whether there are more. Raises CURSOR_INVALID."""
        cursor = Cursor.parse(after) if after else streams.START
        return await self._events.page(tenant_id, log_id, run_id, cursor, page_size or PAGE_SIZE_DEFAULT)

    async def cursors(self, logs: Sequence[LogKey]) -> dict[LogKey, Cursor]:
        """Read the last durable cursors of logs of many tenants."""
        return await self._events.cursors(logs)

    async def watch(self, tenant_id: str, log_id: str, run_id: str, after: str) -> AsyncGenerator[Entry, None]:
        """Yield a log's events after a cursor, from now on where it is empty; of one run only until its end.

        Raises CURSOR_INVALID, SLOW_CONSUMER, and RUN_NOT_FOUND where the run is not in this log.
        """
        wanted = Cursor.parse(after) if after else None
        last = await self._events.last(tenant_id, log_id)
        begin = last if wanted is None else wanted
        if run_id:
            run = await self._runs.get(tenant_id, run_id)
            if run is None or run["log_id"] != log_id:
                raise not_found()
            end = await self._events.end_of(tenant_id, run_id)
            if end is not None and end <= begin:
                return

        async def durable(cursor: Cursor) -> DurablePage:
            return await self._events.page(tenant_id, log_id, "", cursor, PAGE_SIZE_DEFAULT)

        key = streams.log_key(tenant_id, log_id)
        async with aclosing(self._subscriber.watch(key, begin, durable, known=last)) as entries:
            async for entry in entries:
                if run_id and entry.run_id != run_id:
                    continue
                yield entry
                if run_id and entry.type in TERMINAL:
                    return


class Tick:
    """Last durable cursors of streams by their keys, straight from the database."""

    def __init__(self, events: EventStore) -> None:
        self._events = events

    async def __call__(self, keys: Sequence[str]) -> dict[str, Cursor]:
        """Read the last durable cursor of each stream whose log is there."""
        logs = {_log_of(key): key for key in keys}
        found = await self._events.cursors(list(logs))
        return {logs[log]: cursor for log, cursor in found.items()}


def _log_of(key: str) -> LogKey:
    """Read what streams.log_key wrote."""
    _, tenant_id, _, log_id = key.split(":", 3)
    return tenant_id, log_id
