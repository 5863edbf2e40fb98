"""A box, as seen from outside: speaks to the agent in it, and believes it nothing that could harm this process."""

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import PurePosixPath

import structlog
from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.bwrap import framing
from retinue_sandbox.ports import Command, Exit, Isolation, Launched, Limits, Outcome, Piece, Source, Work

HELLO_TIMEOUT_S = 10.0
"""Until the agent speaks; it takes some 20 ms."""

GRACE_S = 10.0
"""An execution whose end is not told so long after its time is over is taken for a box that does not work."""

KILL_TIMEOUT_S = 5.0
"""For the end of what was killed; then the whole box is."""

CLOSE_TIMEOUT_S = 10.0
"""For the end of bubblewrap, once the box's first process was killed."""

FRAME_MAX_BYTES = framing.CHUNK + framing.NUMBER.size
"""What the agent says at once."""

FOLDER = "/workspace"

_STREAMS = {framing.STDOUT: "stdout", framing.STDERR: "stderr"}

_MESSAGES = {
    Outcome.WALL_TIME: "It took longer than {limits.wall_s:g} s.",
    Outcome.CPU_TIME: "It used more than {limits.cpu_s:g} s of a processor.",
    Outcome.MEMORY: "It needed more than {limits.memory_bytes} bytes of memory.",
    Outcome.PROCESSES: "It wanted more than {limits.process_count} processes.",
    Outcome.OUTPUT: "It said far more than {limits.output_bytes} bytes.",
    Outcome.FILE_SIZE: "It wrote a file of more than {limits.file_bytes} bytes.",
    Outcome.DISK: "There was no more space for its files.",
    Outcome.CANCELLED: "It was ended.",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def lost(private: str = "") -> RetinueError:
    """Say that a box has ended."""
    message = "The box has ended, and what ran in it."
    return RetinueError(Reason.SANDBOX_UNAVAILABLE, message, private=private, check="box_lost")


class _Call:
    """An execution, as it is told."""

    def __init__(self, limits: Limits) -> None:
        self.pieces: deque[Piece] = deque()
        self.left = dict.fromkeys(_STREAMS.values(), limits.output_bytes)
        """Bytes of each stream that are still to be kept."""
        self.patience_s = limits.wall_s + GRACE_S
        """How long it is still waited for what it says, all waits together: a reader's own time does not count."""
        self.held = 0
        """What of the window is held here."""
        self.eaten = 0
        """What of the window was taken from here, and not given back."""
        self.end: tuple[str, int, int, int, int] | None = None
        self.changed = asyncio.Event()


class AgentBox:
    """Implements ports.Box over the agent of a launched box. `start` it before anything is run."""

    def __init__(self, launched: Launched, isolation: Isolation) -> None:
        self.isolation = isolation
        self.lost = asyncio.Event()
        self._launched = launched
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._why = ""
        self._reading: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait until the agent is there. Raises SANDBOX_UNAVAILABLE (metadata.check "agent"), having closed the box."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                streams = await asyncio.open_unix_connection(sock=self._launched.control, limit=FRAME_MAX_BYTES)
                self._reader, self._writer = streams
                kind, _, payload = await self._read()
            if kind != framing.HELLO or payload != framing.NUMBER.pack(framing.VERSION):
                raise ValueError("the agent speaks another tongue")
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            await self.close()
            message = "A box was opened, and nothing in it answers."
            raise RetinueError(
                Reason.SANDBOX_UNAVAILABLE, message, private=str(error) or type(error).__name__, check="agent"
            ) from error
        except BaseException:
            await self.close()
            raise
        self._reading = asyncio.create_task(self._follow(), name="box")

    async def run(self, work: Work, limits: Limits) -> AsyncGenerator[Piece | Exit, None]:
        """Run something, as ports.Box says."""
        kind, parts = _parts(work)
        if self.lost.is_set():
            raise lost(self._why)
        self._number = number = self._number % framing.NUMBER_MAX + 1
        call = self._calls[number] = _Call(limits)
        end_time = asyncio.get_running_loop().time() + limits.wall_s
        try:
            self._send(kind, number, _limits(limits) + parts)
            await self._flushed()
            while True:
                while call.pieces:
                    piece = call.pieces.popleft()
                    self._eat(number, call, piece)
                    yield piece
                if call.end is not None:
                    break
                await self._wait(call, end_time)
            yield _exit(call.end, limits)
        finally:
            if call.end is None and not self.lost.is_set():
                await asyncio.shield(self._kill(number, call))
            self._calls.pop(number, None)

    async def close(self) -> None:
        """End the box with every process in it; returns once they are gone."""
        if self._closing is None:
            self._lose("closed")
        assert self._closing is not None
        await asyncio.shield(self._closing)

    def _lose(self, why: str) -> None:
        """Tell whoever waits, and begin to clean up."""
        if self._closing is not None:
            return
        self._why = why
        self._kill_all()
        self.lost.set()
        for call in self._calls.values():
            call.changed.set()
        self._closing = asyncio.create_task(self._clean_up(), name="box-end")

    def _kill_all(self) -> None:
        """Kill the box's first process, and with it all others."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._launched.pidfd, signal.SIGKILL)

    async def _clean_up(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        writer = getattr(self, "_writer", None)
        if writer is not None:
            writer.transport.abort()
        else:
            self._launched.control.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._launched.process.wait()
        except TimeoutError:
            log.error("a box does not end", pid=self._launched.pid)
        finally:
            os.close(self._launched.pidfd)

    async def _follow(self) -> None:
        """Read what the agent says until it goes or says what it must not."""
        why = "the agent has gone"
        try:
            while True:
                kind, number, payload = await self._read()
                self._hear(kind, self._calls.get(number), payload)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except ValueError as error:
            why = str(error)
            log.warning("an agent said what it must not", detail=why)
        self._lose(why)

    async def _read(self) -> tuple[int, int, bytes]:
        kind, number, length = framing.HEADER.unpack(await self._reader.readexactly(framing.HEADER.size))
        if length > FRAME_MAX_BYTES:
            raise ValueError("a frame is too long")
        return kind, number, await self._reader.readexactly(length)

    def _hear(self, kind: int, call: _Call | None, payload: bytes) -> None:
        """Take a frame. Raises ValueError for one that makes no sense."""
        if kind in _STREAMS and len(payload) > framing.NUMBER.size:
            if call is None:  # it was killed, and nobody wants to know
                return
            (omitted,) = framing.NUMBER.unpack_from(payload)
            piece = Piece(_STREAMS[kind], payload[framing.NUMBER.size :], omitted)
            call.pieces.append(piece)
            call.left[piece.stream] -= len(piece.data)
            if call.left[piece.stream] < 0:
                raise ValueError("more was said than is to be kept")
            call.held += _cost(piece)
            if call.held > framing.WINDOW + framing.CHUNK + framing.FRAME_COST:
                raise ValueError("more was said than was asked for")
        elif kind == framing.EXIT and len(payload) == framing.END.size:
            if call is None:
                return
            index, *numbers = framing.END.unpack(payload)
            if index >= len(framing.OUTCOMES):
                raise ValueError("there is no such outcome")
            call.end = (framing.OUTCOMES[index], *numbers)
        else:
            raise ValueError("a frame makes no sense")
        call.changed.set()

    def _eat(self, number: int, call: _Call, piece: Piece) -> None:
        """Take a piece from what is held, and let the agent send on once much was."""
        call.held -= _cost(piece)
        call.eaten += _cost(piece)
        if call.eaten >= framing.WINDOW // 2:
            self._send(framing.CREDIT, number, framing.NUMBER.pack(call.eaten))
            call.eaten = 0

    async def _wait(self, call: _Call, end_time: float) -> None:
        """Wait for something to be told. Raises SANDBOX_UNAVAILABLE if the box is lost, or silent beyond all time."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(call.patience_s, max(0.0, end_time - began) + GRACE_S)):
                while not (call.pieces or call.end or self.lost.is_set()):
                    call.changed.clear()
                    await call.changed.wait()
        except TimeoutError:
            self._lose("the agent does not tell the end of what it runs")
        call.patience_s -= asyncio.get_running_loop().time() - began
        if self.lost.is_set() and not (call.pieces or call.end):
            raise lost(self._why)

    async def _kill(self, number: int, call: _Call) -> None:
        """End an execution; the whole box, if that does not help."""
        self._send(framing.KILL, number, b"")
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                while call.end is None and not self.lost.is_set():
                    for piece in call.pieces:
                        self._eat(number, call, piece)
                    call.pieces.clear()
                    call.changed.clear()
                    if call.end is None:
                        await call.changed.wait()
        except TimeoutError:
            self._lose("the agent does not end what it runs")

    def _send(self, kind: int, number: int, payload: bytes) -> None:
        self._writer.write(framing.HEADER.pack(kind, number, len(payload)))
        self._writer.write(payload)

    async def _flushed(self) -> None:
        try:
            async with asyncio.timeout(GRACE_S):
                await self._writer.drain()
        except (OSError, TimeoutError):
            self._lose("the agent does not listen")
            raise lost(self._why) from None


def _cost(piece: Piece) -> int:
    return len(piece.data) + framing.FRAME_COST


def _limits(limits: Limits) -> bytes:
    return framing.LIMITS.pack(
        limits.wall_s,
        limits.cpu_s,
        limits.memory_bytes,
        limits.process_count,
        limits.output_bytes,
        limits.file_bytes,
        limits.open_file_count,
    )


def _parts(work: Work) -> tuple[int, bytes]:
    """Write work as the agent reads it. Raises FIELD_INVALID."""
    if isinstance(work, Source):
        return framing.PYTHON, framing.put_parts(_text("source", work.text), FOLDER.encode(), [], [])
    argv = [_text("argv", word) for word in work.argv]
    if not argv or not argv[0]:
        raise RetinueError.field("argv", "must name a program.")
    environ = [(_name(name), _text("env", value)) for name, value in work.env.items()]
    return framing.RUN, framing.put_parts(work.stdin, _folder(work), environ, argv)


def _text(field: str, text: str) -> bytes:
    if "\0" in text:
        raise RetinueError.field(field, "must not hold NUL.")
    return text.encode("utf-8", "surrogateescape")


def _name(name: str) -> bytes:
    if not name or "=" in name:
        raise RetinueError.field("env", 'must have names, without "=".')
    return _text("env", name)


def _folder(work: Command) -> bytes:
    path = PurePosixPath(FOLDER, work.cwd)  # what is absolute stays as it is
    if ".." in path.parts or not path.is_relative_to(FOLDER):
        raise RetinueError.field("cwd", f"must be beneath {FOLDER}.")
    return _text("cwd", str(path))


def _exit(end: tuple[str, int, int, int, int], limits: Limits) -> Exit:
    """Read how it ended. Raises RetinueError where it was not begun."""
    told, code, duration_ms, cpu_ms, memory_bytes = end
    if told == "no_folder":
        raise RetinueError.field("cwd", "must be a folder.")
    if told == "busy":
        raise RetinueError(Reason.QUOTA_EXCEEDED, "Too much runs in this box at once.", retry_after_s=1.0)
    outcome = Outcome(told)
    message = _MESSAGES.get(outcome, "").format(limits=limits)
    return Exit(outcome, code, duration_ms, cpu_ms, memory_bytes, message)
