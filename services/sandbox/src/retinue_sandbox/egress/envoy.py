"""The Envoy that the service runs: its folder, its start and end, and what it says of the files that it was told by."""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog
from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.egress import envoy_config, starter

USER = 699_999
"""As whom Envoy runs where the service is root: nobody's number, just below those of tenants."""

START_TIMEOUT_S = 20.0
"""Until it answers; it takes half a second on an idle machine."""

APPLY_TIMEOUT_S = 10.0
"""Until it has read what it was told; it takes a few milliseconds."""

STOP_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 2.0
POLL_S = 0.005
POLL_MAX_S = 0.02

DRAIN_S = 1
"""What is under way of a box whose way out is closed may end within it."""

LINE_SIZE_MAX_BYTES = 64 * 1024
"""Of what it writes: an entry of the log has a tenth of that."""

FOLDERS_MAX = 64
"""Folders of former processes that are removed at a start."""

LOCK_FILE = "lock"
_PREFIX = "retinue-egress-"
_RUN = Path("/run")
_NUMBER = re.compile(r"(\S+): (\d+)$", re.MULTILINE)
_VERSION = re.compile(r'\.(cds|lds)\.version_text: "(\d*)"')
_STATS = r"^(cluster_manager|listener_manager)\.(cds|lds)\.(version_text|update_rejected)$|warming"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def unavailable(message: str, private: str = "") -> RetinueError:
    """Say that boxes have no way out for the moment."""
    if private:
        log.warning("the egress proxy does not work", error=message, detail=private)
    return RetinueError(Reason.SANDBOX_UNAVAILABLE, message, private=private, check="egress")


def user_beside(base: int, count: int) -> int:
    """Choose Envoy's user where those of tenants are `base` to `base + count - 1`: none of them, and never root."""
    return base + count if base <= USER < base + count else USER


class Folder:
    """Where Envoy runs and finds its files: one for each process of ours, removed with it or by the next one."""

    def __init__(self, above: str, user: int = USER) -> None:
        """Make it in the folder `above`, or where that is closed to Envoy's user or not told, in one that is not.

        Only sockets in it are meant for others. Raises OSError.
        """
        parent = _parent(above)
        _sweep(parent)
        self.path = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        self.user = user if os.geteuid() == 0 else -1
        self.path.mkdir(mode=0o711)
        self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Paths of sockets are short, those of folders need not be.
        self.fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in (envoy_config.ENDPOINTS_FOLDER, envoy_config.SOCKETS_FOLDER):
            self.make(name)
        self._hand_over(self.path)

    def _hand_over(self, path: Path) -> None:
        if self.user >= 0:
            os.chown(path, self.user, self.user, follow_symlinks=False)  # whose user may put links here

    def make(self, name: str) -> None:
        """Make a folder in it, unless it is there."""
        (self.path / name).mkdir(mode=0o711, exist_ok=True)
        self._hand_over(self.path / name)

    def write(self, name: str, value: Any) -> None:
        """Put a JSON file in place, in one step, for Envoy alone: there may be secrets in it."""
        path = self.path / name
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(new, "xb", opener=lambda target, flags: os.open(target, flags, 0o600)) as file:
            file.write(msgspec.json.encode(value))
            if self.user >= 0:
                os.fchown(file.fileno(), self.user, self.user)
        new.rename(path)

    def copy(self, source: str, name: str) -> None:
        """Put a copy of a file in place, since Envoy may not be able to reach it where it is. Raises OSError."""
        self.remove(name)
        with open(source, "rb") as read, open(self.path / name, "xb") as file:
            shutil.copyfileobj(read, file)
            if self.user >= 0:
                os.fchown(file.fileno(), self.user, self.user)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def unmake(self, name: str) -> None:
        """Remove a folder, if it is there."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def reach(self, name: str) -> str:
        """Write the path of a socket so that it is short enough to connect to."""
        return f"/proc/self/fd/{self.fd}/{name}"

    def close(self) -> None:
        """Remove all. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self.fd = self._lock = -1


def _parent(above: str) -> Path:
    if above:
        path = Path(above).resolve()
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        if os.geteuid() != 0 or _is_open(path):
            return path
    if os.geteuid() == 0 and _is_open(_RUN):  # it is in memory, on most machines
        return _RUN
    return Path(tempfile.gettempdir())


def _is_open(path: Path) -> bool:
    """Whether any user may go through it: Envoy looks at the whole path of each of its files."""
    with contextlib.suppress(OSError):
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))
    return False


def _sweep(parent: Path) -> None:
    """Remove what processes left that were killed: files there may hold secrets."""
    for path in sorted(parent.glob(f"{_PREFIX}*"))[:FOLDERS_MAX]:
        with contextlib.suppress(OSError):
            lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held for as long as the folder is in use
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


class Envoy:
    """One life of it."""

    def __init__(self, folder: Folder, process: asyncio.subprocess.Process, read: list["asyncio.Task[None]"]) -> None:
        self._folder = folder
        self._process = process
        self._read = read
        self._rejected: dict[str, int] = {}
        self._client = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(folder.reach(envoy_config.ADMIN_SOCKET)),
            timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S),
        )

    @classmethod
    async def start(cls, program: Path, folder: Folder, line: Callable[[bytes], None]) -> "Envoy":
        """Start it with what is in its folder; `line` is given each line of its access log.

        Call it from a thread that lives as long as the service: Envoy ends with it. Raises RetinueError
        (SANDBOX_UNAVAILABLE) if it does not come up.
        """
        folder.write("bootstrap.json", envoy_config.bootstrap())
        folder.remove(envoy_config.ADMIN_SOCKET)
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        options += ["--drain-time-s", str(DRAIN_S), "--drain-strategy", "immediate"]
        options += ["--file-flush-interval-msec", "200"]
        fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", starter.__file__, str(os.getpid()), str(folder.user), str(fd),
                "envoy", "-c", "bootstrap.json", *options,
                cwd=folder.path, env={"LANG": "C.UTF-8"}, pass_fds=[fd], start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                limit=LINE_SIZE_MAX_BYTES,
            )  # fmt: skip
        except OSError as error:
            raise unavailable("The proxy to the network could not be started.", repr(error)) from None
        finally:
            os.close(fd)
        assert process.stdout is not None
        assert process.stderr is not None
        read = [
            asyncio.create_task(_lines(process.stdout, line), name="egress access log"),
            asyncio.create_task(_lines(process.stderr, _tell), name="egress log"),
        ]
        self = cls(folder, process, read)
        try:
            await self._wait(self._is_up, START_TIMEOUT_S, "The proxy to the network did not come up.")
        except BaseException:
            await self.stop()
            raise
        return self

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for its end; answers its exit code."""
        return await self._process.wait()

    async def _ask(self, path: str) -> str:
        """Ask it about itself; nothing if it does not answer."""
        try:
            async with self._client.get(f"http://admin{path}") as answer:
                return await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, OSError):
            return ""

    async def _is_up(self) -> bool:
        return (await self._ask("/ready")).startswith("LIVE")

    async def applied(self, kind: str, version: int) -> None:
        """Wait until it works by a version of its clusters (`cds`) or listeners (`lds`), or a later one.

        Raises RetinueError(SANDBOX_UNAVAILABLE) if it refuses it, dies, or takes too long.
        """

        async def is_applied() -> bool:
            now = await self._stats()
            rejected = now.get(f"{kind}.update_rejected", 0)
            if rejected > self._rejected.get(kind, 0):
                self._rejected[kind] = rejected
                raise unavailable("The proxy to the network refused what it was told.", kind)
            return now.get(kind, -1) >= version and not now.get("warming", 1)

        await self._wait(is_applied, APPLY_TIMEOUT_S, "The proxy to the network does not do as it is told.")

    async def _stats(self) -> dict[str, int]:
        text = await self._ask(f"/stats?usedonly=&filter={_STATS.replace('|', '%7C').replace('^', '%5E')}")
        found = {kind: int(version or 0) for kind, version in _VERSION.findall(text)}
        for name, value in _NUMBER.findall(text):
            if "warming" in name:
                found["warming"] = found.get("warming", 0) + int(value)
            else:
                found[".".join(name.split(".")[-2:])] = int(value)
        return found

    async def _wait(self, check: Callable[[], Any], timeout_s: float, message: str) -> None:
        pause_s = POLL_S
        try:
            async with asyncio.timeout(timeout_s):
                while self.is_alive:
                    if await check():
                        return
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, POLL_MAX_S)
        except TimeoutError:
            raise unavailable(message, "in time") from None
        raise unavailable(message, f"it ended with {self._process.returncode}")

    async def stop(self) -> None:
        """End it at once. Safe to call twice."""
        await self._client.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        # What it wrote last is still in the pipes, unless a child of its own should hold them open.
        await asyncio.wait(self._read, timeout=STOP_TIMEOUT_S)
        for task in self._read:
            task.cancel()
        await asyncio.gather(*self._read, return_exceptions=True)


async def _lines(stream: asyncio.StreamReader, use: Callable[[bytes], None]) -> None:
    """Give away each line until there are no more; one that is too long is left out."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError as error:
            await stream.readexactly(error.consumed or 1)
            continue
        use(line)


_SECRET_LINE = re.compile(r"Proto constraint|INVALID_ARGUMENT|rejected|request_headers_to_add", re.IGNORECASE)
"""What quotes the files, in which secrets are."""


def _tell(line: bytes) -> None:
    text = line.decode("utf-8", "replace").strip()[:500]
    log.warning("envoy", detail="it refused a file" if _SECRET_LINE.search(text) else text)
