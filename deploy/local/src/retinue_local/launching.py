"""The supervisor's side of the fork servers: one for programs, one for the Python processes of the mesh."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from retinue_local import forkserver

SHARED_MODULES = (
    "asyncpg",
    "grpc.aio",
    "redis.asyncio",
    "retinue_kit.client",
    "retinue_kit.postgres",
    "retinue_kit.process",
    "retinue_kit.streams",
    "retinue_kit.watching",
)
"""What most services import; what one alone needs, it imports itself."""


class Launcher:
    """A fork server as its client sees it; started when first needed, and again if it died."""

    def __init__(self, modules: Sequence[str], environ: Mapping[str, str], log_file: Path) -> None:
        self._modules = modules
        self._environ = environ
        self._log_file = log_file
        self._channel: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._started: list[asyncio.Future[int]] = []
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._lock = asyncio.Lock()

    async def launch(self, order: forkserver.Order) -> tuple[int, asyncio.Future[int]]:
        """Start something; answers its pid, and the exit code to come. ConnectionError if the server died meanwhile."""
        async with self._lock:
            if self._channel is None:
                await self._start()
        assert self._channel is not None
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._started.append(started)
        self._channel.send(msgspec.json.encode(order))
        pid = await started
        return pid, self._exits[pid]

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "retinue_local.forkserver",
                str(os.getpid()),
                str(theirs.fileno()),
                *self._modules,
                env=dict(self._environ),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        ours.setblocking(False)
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

    def _read(self) -> None:
        assert self._channel is not None
        try:
            data = self._channel.recv(forkserver.MESSAGE_SIZE_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        answer = msgspec.json.decode(data, type=forkserver.Answer)
        if answer.code is None:
            self._exits[answer.pid] = asyncio.get_running_loop().create_future()
            self._started.pop(0).set_result(answer.pid)
        else:
            self._exits.pop(answer.pid).set_result(answer.code)

    def _lost(self) -> None:
        # Its children have died with it: the kernel sees to that.
        assert self._channel is not None
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        self._channel = None
        for started in self._started:
            started.set_exception(ConnectionError("the fork server died"))
        for ended in self._exits.values():
            ended.set_result(-signal.SIGKILL)
        self._started.clear()
        self._exits.clear()

    async def close(self) -> None:
        """Let it end; its children have to be gone."""
        if self._channel is not None:
            self._lost()
        if self._process is not None:
            await self._process.wait()
