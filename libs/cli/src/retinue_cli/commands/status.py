"""retinue status."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from retinue_local.status import ProcessStatus

from retinue_cli.failures import CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir

if TYPE_CHECKING:
    from rich.table import Table

KEYS = ("name", "pid", "address", "health", "restarts")
SERVING = "serving"
WIDTH_MAX = 1000
"""Longer than any line: a path has at most a hundred characters."""


def status(
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects instead of a table.")] = False,
    load: Annotated[
        bool, typer.Option("--load", help="Only what waits, what was set aside and which breakers are not closed.")
    ] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Show each process of the mesh, and below what waits; the exit code is 0 if all of them serve."""
    state = State(state_dir)
    found = state.mesh()
    processes = found.processes if found else []
    if load:
        show_load(state, as_json=as_json)
    elif as_json:
        typer.echo(json.dumps([{key: getattr(process, key) for key in KEYS} for process in processes], indent=2))
    elif found is None:
        raise CommandError(f"No mesh runs on {state.paths.state}.")
    else:
        from rich.console import Console

        # A terminal folds long addresses; whoever reads from a pipe gets a line a process.
        Console(width=None if sys.stdout.isatty() else WIDTH_MAX).print(table(processes))
        typer.echo(f"clients: {found.address}")
        show_runtimes(state, found.openclaw_missing)
        show_load(state)
    return 0 if processes and all(process.health == SERVING for process in processes) else 1


def show_runtimes(state: State, openclaw_missing: str) -> None:
    """Print what each runtime says of itself."""
    from retinue_cli import runtimes

    try:
        for runtime in runtimes.read(state):
            typer.echo(f"runtime {runtimes.named(runtime)}{'' if runtime.available else ', not available'}")
    except CommandError as error:
        typer.echo(f"runtimes: {error}")
    if openclaw_missing:
        typer.echo(f"runtime openclaw is not on: {openclaw_missing}")


def show_load(state: State, *, as_json: bool = False) -> None:
    """Print what the mesh says of its load. CommandError if none runs."""
    from retinue_cli import load

    found = load.read(state)
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=2))
    else:
        load.show(found)


def table(processes: Sequence[ProcessStatus]) -> "Table":
    """Lay processes out for people; what does not serve stands out."""
    from rich.table import Table
    from rich.text import Text

    from retinue_cli.reports import shortened

    laid = Table(*KEYS, box=None, pad_edge=False)
    laid.columns[KEYS.index("address")].overflow = "fold"
    for process in processes:
        health = Text(process.health, style="green" if process.health == SERVING else "bold red")
        scheme, is_socket, path = process.address.partition("unix:")
        address = f"{scheme}{is_socket}{shortened(Path(path))}" if is_socket else process.address
        laid.add_row(process.name, str(process.pid or "–"), address, health, str(process.restarts))
    return laid
