"""retinue trace."""

import re
from typing import Annotated

import typer

from retinue_cli.failures import CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir


def trace(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a trace id as in x-trace-id.")],
    tenant: Annotated[str, typer.Option(help="The run's tenant; that of the kept token if not given.")] = "",
    token: Annotated[str, typer.Option(envvar="RETINUE_TOKEN", help="A token of the run's tenant.")] = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Draw where the time of a run went, through every part of the mesh."""
    from retinue_kit.spans import read_trace
    from rich.console import Console

    from retinue_cli.waterfall import draw

    state = State(state_dir)
    trace_id = run.lower() if re.fullmatch(r"[0-9a-fA-F]{32}", run) else _trace_of(state, run, tenant, token)
    spans = read_trace(state.paths.traces, trace_id)
    if not spans:
        raise CommandError(f"No spans of trace {trace_id} are kept in {state.paths.traces} (any more).")
    console = Console(highlight=False)
    begin, end = min(span.start for span in spans), max(span.end for span in spans)
    console.print(f"trace {trace_id}  {(end - begin) / 1e6:.1f} ms  {len(spans)} spans", soft_wrap=True)
    for line in draw(spans, console.width):
        console.print(line, style="red" if line.startswith("✗") else None, markup=False, soft_wrap=True)
    return 0


def _trace_of(state: State, run: str, tenant: str, token: str) -> str:
    """Ask the router for the trace of a run."""
    from retinue_cli.mesh import Mesh

    with Mesh(state) as mesh:
        trace_id = mesh.run(mesh.tenant_of(tenant, token or state.token()), run).trace_id
    if not trace_id:
        raise CommandError(f"{run} was not traced.")
    return trace_id
