"""Starts processes, watches them, and starts again what dies."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from retinue_kit.config import SettingError

from retinue_local import forkserver
from retinue_local.launching import Launcher
from retinue_local.plan import Plan

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
"""Between two tries of something that does not stay up."""

HEALTHY_RESET_S = 10.0
"""Healthy for this long, a process that dies is started again without delay."""

POLL_STARTING_S = 0.05
POLL_S = 1.0
"""How often a process is asked for its health."""

LOG_SIZE_MAX_BYTES = 8 * 1024 * 1024
"""Then a log becomes `.1`, replacing the one before."""

SETTINGS_EXIT = 2
"""The exit code of a service whose settings are wrong: trying again would not help."""

log = logging.getLogger("retinue_local")


def rotate(path: Path) -> None:
    """Set a log aside if it has grown too large; what writes to it goes on writing."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_SIZE_MAX_BYTES:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)


class Process:
    """One process of the plan over all its lives."""

    def __init__(
        self,
        plan: Plan,
        log_file: Path,
        launcher: Launcher,
        needs: list["Process"],
        changed: Callable[["Process"], None],
    ) -> None:
        self.plan = plan
        self.log_file = log_file
        self.pid = 0
        self.health = "starting"
        self.restarts = 0
        self.seconds = 0.0
        """From the start of its present life until it served."""
        self.ready = asyncio.Event()
        self.failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set if starting it again would not help; one line."""
        self._launcher = launcher
        self._needs = needs
        self._changed = changed
        self._stopping = asyncio.Event()
        self._gone = asyncio.Event()
        self._gone.set()
        self._healthy_since: float | None = None

    async def run(self) -> None:
        """Start it when what it needs is there, and again whenever it ends, until it is stopped."""
        for need in self._needs:
            await self._unless_stopping(need.ready.wait())
        backoff_s = BACKOFF_FIRST_S
        while not self._stopping.is_set():
            began = time.monotonic()
            self._tell("restarting" if self.restarts else "starting")
            try:
                code = await self._live(began)
            except SettingError as error:
                self.failure.set_result(str(error))
                return
            except OSError as error:
                code = 1
                log.warning("%s could not be started: %s", self.plan.name, error)
            if self._stopping.is_set():
                return
            if code == SETTINGS_EXIT and not self.ready.is_set():
                self.failure.set_result(f"{self.plan.name}: {self._last_line()}")
                return
            log.warning("%s ended with %s after %.1f s", self.plan.name, code, time.monotonic() - began)
            if self._healthy_since is not None and time.monotonic() - self._healthy_since > HEALTHY_RESET_S:
                backoff_s = BACKOFF_FIRST_S
            self._healthy_since = None
            self.restarts += 1
            self._tell("restarting")
            await self._unless_stopping(asyncio.sleep(backoff_s))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _live(self, began: float) -> int:
        await self.plan.prepare()
        if self._stopping.is_set():
            return 0
        rotate(self.log_file)
        self.pid, ended = await self._spawn()
        self._gone.clear()
        if self._stopping.is_set():
            self._signal(signal.SIGKILL)
        self._tell(self.health)
        watching = asyncio.create_task(self._watch(began))
        try:
            return await ended
        finally:
            watching.cancel()
            # What it may have started itself is in its group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.pid = 0
            self._gone.set()

    async def _spawn(self) -> tuple[int, asyncio.Future[int]]:
        plan = self.plan
        order = forkserver.Order(
            name=plan.name,
            command=list(plan.command),
            environ=dict(plan.environ),
            log=str(self.log_file),
            module=plan.module,
            account=plan.account,
            death_signal=plan.death_signal,
        )
        return await self._launcher.launch(order)

    async def _watch(self, began: float) -> None:
        while True:
            served = await self.plan.check()
            if served and self.health != "serving":
                if not self.ready.is_set():
                    await self.plan.settle()
                self.seconds = time.monotonic() - began
                self._healthy_since = self._healthy_since or time.monotonic()
                self._tell("serving")
                self.ready.set()
            elif not served and self.health == "serving":
                self._tell("not_serving")
            await asyncio.sleep(POLL_S if served else POLL_STARTING_S)

    def _tell(self, health: str) -> None:
        self.health = health
        self._changed(self)

    def _last_line(self) -> str:
        try:
            return self.log_file.read_text("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        except OSError:
            return "its settings are wrong"

    async def _unless_stopping(self, waiting: Coroutine[Any, Any, object]) -> None:
        tasks = [asyncio.create_task(self._stopping.wait()), asyncio.create_task(waiting)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def stop(self, timeout_s: float) -> None:
        """End it for good: asked first, killed after the time."""
        self._stopping.set()
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                if self.pid:
                    await self.plan.drain()
                self._signal(self.plan.stop_signal)
                await self._gone.wait()
        except TimeoutError:
            log.warning("%s did not end in %.1f s and is killed", self.plan.name, timeout_s)
            await self.kill()
        log.info("%s ended after %.2f s", self.plan.name, time.monotonic() - began)

    async def kill(self) -> None:
        """End it at once."""
        self._stopping.set()
        self._signal(signal.SIGKILL)
        await self._gone.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
