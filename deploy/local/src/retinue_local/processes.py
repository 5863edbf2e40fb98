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

EXITS_MAX = 5
"""Exits in a row before it ever served: two seconds and five starts, after which one more would not help."""

SERVE_TIMEOUT_S = 30.0
"""How long a process that is restarted may take until it serves: twenty times what it takes on an idle machine."""

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


class StartError(Exception):
    """A process did not come up; the text is one line that says which did not and where its log is."""


class Life:
    """One life of a process: from its start to its end."""

    def __init__(self, name: str, pid: int, ended: asyncio.Future[int]) -> None:
        self.name = name
        self.pid = pid
        self.began = time.monotonic()
        self.gone = asyncio.Event()
        self.code = 0
        """How it ended; a signal is told as its negative."""
        ended.add_done_callback(self._bury)

    def _bury(self, ended: asyncio.Future[int]) -> None:
        self.code = ended.result()
        # What it may have started itself is in its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        log.info("%s (%d) ended with %d after %.1f s", self.name, self.pid, self.code, time.monotonic() - self.began)
        self.gone.set()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if not self.gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def leave(self, number: signal.Signals, timeout_s: float, hurry_s: float = 0.0) -> None:
        """Ask it to end, once more so long before its time is over; one that does not in time is killed."""
        self.send(number)
        if hurry_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, timeout_s - hurry_s)):
                    await self.gone.wait()
            self.send(number)
        try:
            async with asyncio.timeout(min(timeout_s, hurry_s or timeout_s)):
                await self.gone.wait()
        except TimeoutError:
            log.warning("%s (%d) did not end in %.1f s and is killed", self.name, self.pid, timeout_s)
            await self.kill()

    async def kill(self) -> None:
        """End it at once."""
        self.send(signal.SIGKILL)
        await self.gone.wait()


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
        self.health = "starting"
        self.restarts = 0
        """How often it was started again because it had ended by itself."""
        self.seconds = 0.0
        """From the start of its present life until it served."""
        self.ready = asyncio.Event()
        self.failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Set if starting it again would not help: a SettingError or a StartError."""
        self._launcher = launcher
        self._needs = needs
        self._changed = changed
        self._stopping = asyncio.Event()
        self._life: Life | None = None
        self._lives: set[Life] = set()
        """All that have not ended: one, and while one takes another's place, two."""
        self._successor: Life | None = None
        self._replaced = asyncio.Event()
        self._leaving = False
        """Whether the present life was asked to leave, so that another begins."""
        self._healthy_since: float | None = None

    @property
    def pid(self) -> int:
        """Its present life's; 0 while there is none."""
        return self._life.pid if self._life else 0

    async def run(self) -> None:
        """Start it when what it needs is there, and again whenever it ends, until it is stopped."""
        for need in self._needs:
            await self._unless_stopping(need.ready.wait())
        backoff_s = BACKOFF_FIRST_S
        exits = 0
        while not self._stopping.is_set():
            self._tell("restarting" if self.restarts or self.ready.is_set() else "starting")
            try:
                code = await self._live()
            except SettingError as error:
                self.failure.set_result(error)
                return
            except OSError as error:
                code = 1
                log.warning("%s could not be started: %s", self.plan.name, error)
            if self._stopping.is_set():
                return
            if self._leaving:
                self._leaving = False
                continue
            exits += 1
            if not self.ready.is_set() and (code == SETTINGS_EXIT or exits == EXITS_MAX):
                self.failure.set_result(self._hopeless(code))
                return
            if self._healthy_since is not None and time.monotonic() - self._healthy_since > HEALTHY_RESET_S:
                backoff_s = BACKOFF_FIRST_S
            self._healthy_since = None
            self.restarts += 1
            self._tell("restarting")
            await self._unless_stopping(asyncio.sleep(backoff_s))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _live(self) -> int:
        """Begin a life and wait for its end; answers the exit code. One that takes its place is waited for in turn."""
        await self.plan.prepare()
        if self._stopping.is_set():
            return 0
        life = self._life = await self._begin()
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                self._replaced.clear()
                await _first(life.gone.wait(), self._replaced.wait())
                if self._life is life:
                    if self._successor is None or self._successor.gone.is_set():
                        return life.code
                    self._life = self._successor  # it went before its time, and the next one is on its way
                life = self._life
        finally:
            watching.cancel()
            self._life = None

    async def _begin(self) -> Life:
        rotate(self.log_file)
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
        life = Life(plan.name, *await self._launcher.launch(order))
        self._lives = {one for one in self._lives if not one.gone.is_set()} | {life}
        if self._stopping.is_set():
            life.send(signal.SIGKILL)
        return life

    async def _watch(self) -> None:
        self._tell(self.health)
        while True:
            served = await self.plan.check()
            if served and self.health != "serving":
                if not self.ready.is_set():
                    await self.plan.settle()
                self.seconds = time.monotonic() - self._life.began if self._life else 0.0
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
            return "it says nothing"

    def _hopeless(self, code: int) -> Exception:
        if code == SETTINGS_EXIT:
            return SettingError(f"{self.plan.name}: {self._last_line()}")
        return StartError(
            f"{self.plan.name} ended {EXITS_MAX} times before it served, at last with {code}: {self._last_line()}; "
            f"see {self.log_file}."
        )

    async def _unless_stopping(self, waiting: Coroutine[Any, Any, object]) -> None:
        await _first(self._stopping.wait(), waiting)

    async def restart(self) -> None:
        """Have a new life in the place of the present one, and wait until it serves and the former has left.

        Where the plan can tell them apart, the new one serves before the former is asked to leave, so that there is
        always one. Raises StartError if the new one does not come up; then the former goes on, if it can.
        """
        former = self._life
        log.info("%s is restarted", self.plan.name)
        if former is None:  # it is just beginning another one
            await self._until_served(former)
        elif self.plan.place is None:
            self._leaving = True
            self._tell("restarting")
            await self.plan.drain()
            await former.leave(self.plan.stop_signal, self.plan.grace_s)
            await self._until_served(former)
        else:
            await self._relieve(former, self.plan.place)

    async def _until_served(self, former: Life | None) -> None:
        try:
            async with asyncio.timeout(SERVE_TIMEOUT_S):
                while self._life in (None, former) or self.health != "serving":  # noqa: ASYNC110 - two things at once
                    await asyncio.sleep(POLL_STARTING_S)
        except TimeoutError:
            why = f"{self.plan.name} does not serve again after {SERVE_TIMEOUT_S:.0f} s; see {self.log_file}."
            raise StartError(why) from None

    async def _relieve(self, former: Life, place: Callable[[], int]) -> None:
        before = place()
        successor = self._successor = await self._begin()
        try:
            served = await self._takes_over(successor, place, before)
            if place() == before:
                raise StartError(f"{self.plan.name} goes on as it was; a new one did not come up: {self._last_line()}")
            # From here on nobody new reaches the former one.
            if self._life is former:
                self._life = successor
                self._replaced.set()
            self.seconds = time.monotonic() - successor.began
            self._tell("serving" if served else "not_serving")
            await former.leave(self.plan.stop_signal, self.plan.grace_s)
            if not served:
                raise StartError(f"{self.plan.name} does not serve: {self._last_line()}; see {self.log_file}.")
        finally:
            self._successor = None
            if self._life is not successor:
                await successor.kill()

    async def _takes_over(self, successor: Life, place: Callable[[], int], before: int) -> bool:
        try:
            async with asyncio.timeout(SERVE_TIMEOUT_S):
                while not successor.gone.is_set():
                    if place() != before and await self.plan.check():
                        return True
                    await asyncio.sleep(POLL_STARTING_S)
        except TimeoutError:
            log.warning("%s does not serve after %.0f s", self.plan.name, SERVE_TIMEOUT_S)
        return False

    async def stop(self, timeout_s: float) -> None:
        """End it for good: asked first, killed after the time."""
        self._stopping.set()
        began = time.monotonic()
        if self._lives:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.plan.drain()
        left_s = max(0.0, began + timeout_s - time.monotonic())
        await asyncio.gather(*(life.leave(self.plan.stop_signal, left_s, self.plan.hurry_s) for life in self._lives))

    async def kill(self) -> None:
        """End it at once."""
        self._stopping.set()
        await asyncio.gather(*(life.kill() for life in self._lives))


async def _first(*waiting: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them is done; the others are given up."""
    tasks = [asyncio.create_task(one) for one in waiting]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
