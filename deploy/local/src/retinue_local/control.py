"""Orders to a running supervisor, over a unix socket that only its own user can reach.

One order a connection: a line of JSON in, a line of JSON back for each thing that happens, the last one an End. Whoever
leaves before it has what is at hand finished, and no more.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from retinue_local.processes import Process, StartError

ORDER_SIZE_MAX_BYTES = 8 * 1024
"""A line that names every process many times over."""

ORDER_TIMEOUT_S = 5.0
"""For an order to arrive, once somebody has connected."""

log = logging.getLogger("retinue_local")


class Order(msgspec.Struct):
    """Which processes to restart, in this order; all services, in the order that they are started in, if none."""

    restart: list[str] = []


class Step(msgspec.Struct):
    """A process that is being restarted: `seconds` is None when it begins, and what it took once it is done."""

    process: str
    seconds: float | None = None


class End(msgspec.Struct):
    """The order's end; `error` is empty if all of it was done, else one line. `refused`: nothing was begun."""

    error: str = ""
    refused: bool = False


class Control:
    """Takes orders, one at a time."""

    def __init__(self, path: Path, processes: Mapping[str, Process]) -> None:
        self._path = path
        self._processes = processes
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._busy = False

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=ORDER_SIZE_MAX_BYTES)

    async def stop(self) -> None:
        """Take no more orders, and give up the one that is followed."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, ValueError) as error:
            log.info("an order was not followed to its end: %s", error)
        finally:
            self._serving.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(ORDER_TIMEOUT_S):
            line = await reader.readline()
        end = self._refusal(line)
        if not end.refused:
            self._busy = True
            try:
                end = await self._restart(msgspec.json.decode(line, type=Order).restart, writer)
            finally:
                self._busy = False
        await _tell(writer, end)

    def _refusal(self, line: bytes) -> End:
        try:
            names = msgspec.json.decode(line, type=Order).restart
        except msgspec.DecodeError:
            return End("The supervisor does not understand the order: is it of another release?", refused=True)
        unknown = [name for name in names if name not in self._processes]
        if unknown:
            known = ", ".join(self._processes)
            return End(f"No process is called {unknown[0]!r}; there are {known}.", refused=True)
        if self._busy:
            return End("Another restart is under way; wait for its end.", refused=True)
        return End()

    async def _restart(self, names: list[str], writer: asyncio.StreamWriter) -> End:
        names = list(dict.fromkeys(names)) or [p.plan.name for p in self._processes.values() if p.plan.place]
        for name in names:
            began = time.monotonic()
            await _tell(writer, Step(name))
            try:
                await self._processes[name].restart()
            except (StartError, OSError) as error:
                return End(str(error))
            await _tell(writer, Step(name, time.monotonic() - began))
        return End()


async def _tell(writer: asyncio.StreamWriter, said: Step | End) -> None:
    writer.write(msgspec.json.encode(said) + b"\n")
    await writer.drain()
