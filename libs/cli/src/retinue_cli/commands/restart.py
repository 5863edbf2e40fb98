"""retinue restart."""

import json
import socket
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir

STEP_TIMEOUT_S = 120.0
"""The longest that one process takes: half a minute to come up, half a minute for runs to end, and as much again."""


def restart(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Processes as retinue status names them; all services if none."),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Restart services one after another while the mesh goes on; stores and Envoy only if they are named."""
    state = State(state_dir)
    state.require()
    for said in _order(state, {"restart": names or []}):
        if "process" not in said:
            if said["error"]:
                raise CommandError(said["error"], EXIT_SETTINGS if said["refused"] else 1)
            return 0
        if said["seconds"] is not None:
            typer.echo(f"{said['process']}: serving anew after {said['seconds']:.1f} s")
        else:
            typer.echo(f"{said['process']}: restarting")
    raise CommandError("The mesh stopped meanwhile.")


def _order(state: State, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the supervisor an order; tells what it says."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(STEP_TIMEOUT_S)
        try:
            connection.connect(str(state.paths.control))
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    yield json.loads(line)
        except OSError as error:
            raise CommandError(f"The supervisor does not answer on {state.paths.control}: {error}.") from None
