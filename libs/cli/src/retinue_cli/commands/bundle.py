"""retinue bundle: a conversation to take along, and to bring back."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from retinue_cli.places import PIPE, read_bounded, write_new
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_json, print_table

app = typer.Typer(help="Take a conversation along, and bring it back.", no_args_is_help=True)

SIZE_MAX_BYTES = 3 << 20
"""Of a bundle, by contract."""

HELD = "held"
"""The fate of a field that is as it was, of which nothing need be told."""

Contact = Annotated[str, typer.Argument(metavar="CONTACT", help="Whom the conversation is with.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of its tenant; that of the kept token if not given.")]


@app.command("export")
def export(
    contact: Contact,
    to: Annotated[
        str, typer.Option("--output", "-o", help="A new file, CONTACT.bundle if not given, or - for standard output.")
    ] = "",
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Write a contact's current conversation to a file, signed; nothing that is there already is written over."""
    from retinue_cli.bundles import Bundles
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        made = Bundles(mesh, mesh.tenant_of(tenant, where.token())).build(contact)
    if to == PIPE:
        sys.stdout.buffer.write(made)
        sys.stdout.buffer.flush()
        return 0
    place = Path(to or f"{contact}.bundle")
    write_new(place, [made])
    typer.echo(f"{place}: {len(made)} bytes")
    return 0


@app.command("import")
def bring(
    contact: Contact,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A bundle on this machine, or - for standard input.")],
    tenant: Tenant = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Begin a fresh conversation that goes on where a bundle ends; tells what is not held as it was."""
    data = read_bounded(file, SIZE_MAX_BYTES)
    from retinue_cli.bundles import Bundles
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        made = Bundles(mesh, mesh.tenant_of(tenant, where.token())).bring(contact, data)
    lost = [(one.field, one.fate, one.reason) for one in made.losses.fields if one.fate != HELD]
    if as_json:
        losses = [dict(zip(("field", "fate", "reason"), one, strict=True)) for one in lost]
        print_json({"session_id": made.session_id, "losses": losses})
        return 0
    typer.echo(f"{contact} goes on as {made.session_id}.")
    if lost:
        print_table(("not as it was", "it is", "why"), lost)
    return 0
