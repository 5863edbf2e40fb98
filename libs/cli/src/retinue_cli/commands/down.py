"""retinue down."""

import os
import signal
import time

import typer

from retinue_cli.failures import CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir

STOP_TIMEOUT_S = 40.0
"""Runs under way get their time, then everything is told to stop in order; Postgres writes what it holds."""

POLL_S = 0.05


def down(state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Stop the mesh of a state folder; what it keeps stays. Nothing happens if none runs."""
    state = State(state_dir)
    pid = supervisor(state)
    if pid is None:
        typer.echo(f"No mesh runs on {state.paths.state}.")
        return 0
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_TIMEOUT_S
    while state.is_running():
        if time.monotonic() > end:
            raise CommandError(f"The supervisor, process {pid}, is still stopping things.")
        time.sleep(POLL_S)
    typer.echo("The mesh has stopped.")
    return 0


def supervisor(state: State) -> int | None:
    """Find the process that holds a state folder; None if none does."""
    if not state.is_running():
        return None
    try:
        return int(state.paths.lock.read_text())
    except (OSError, ValueError):
        return None
