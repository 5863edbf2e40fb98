"""retinue files: what a tenant's agent works with, and what it makes."""

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.places import PIPE, read_bounded, write_new
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_json, print_table, printable, time_of

if TYPE_CHECKING:
    from retinue.sandbox.v1.file_service_pb2 import FileInfo

app = typer.Typer(help="Read and write the files of a tenant.", no_args_is_help=True)

UPLOAD_SIZE_MAX_BYTES = 4 << 20
"""Of a file that is sent, by contract."""

Path_ = Annotated[str, typer.Argument(metavar="PATH", help='The file, with "/" between the parts.')]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of its tenant; that of the kept token if not given.")]


@app.command("list")
def list_files(
    folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help="Only what is in this folder.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="With the folders within.")] = False,
    tenant: Tenant = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """List files, sorted by path."""
    from retinue_cli.files import Files
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = Files(mesh, mesh.tenant_of(tenant, where.token())).list(folder, recursive=recursive)
    if as_json:
        print_json([plain(file) for file in found])
    else:
        print_table(("path", "kind", "bytes", "changed"), [line(file) for file in found])
    return 0


@app.command("get")
def get(
    path: Path_,
    to: Annotated[
        str, typer.Argument(metavar="[TO]", help="A new file on this machine, or - for standard output.")
    ] = "",
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Read a file of any size; nothing that is there already is written over."""
    from retinue_cli.files import Files
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        pieces = Files(mesh, mesh.tenant_of(tenant, where.token())).read(path)
        if to == PIPE:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return 0
        first = next(pieces)  # what is not there makes no file
        place = Path(to or path.rsplit("/", 1)[-1])
        write_new(place, chain((first,), pieces))
    return 0


@app.command("put")
def put(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file on this machine, or - for standard input.")],
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="What it is called there; its own name if not given.")
    ] = "",
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Write a file whole, at most 4 MiB, in the place of one that is there."""
    if file == PIPE and not path:
        raise CommandError("Say what it is to be called: a PATH behind the -.", EXIT_SETTINGS)
    data = read_bounded(file, UPLOAD_SIZE_MAX_BYTES)
    from retinue_cli.files import Files
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        made = Files(mesh, mesh.tenant_of(tenant, where.token())).write(path or Path(file).name, data)
    typer.echo(f"{printable(made.path)}: {made.size_bytes} bytes, SHA-256 {made.digest}")
    return 0


@app.command("rm")
def remove(
    path: Path_,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A folder with all that it holds.")] = False,
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Remove a file, or a folder."""
    from retinue_cli.files import Files
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        count = Files(mesh, mesh.tenant_of(tenant, where.token())).remove(path, recursive=recursive)
    typer.echo(f"{count} gone.")
    return 0


def plain(file: "FileInfo") -> dict[str, Any]:
    """Make an object for programs; the size is a number."""
    from google.protobuf.json_format import MessageToDict

    return {**MessageToDict(file, preserving_proto_field_name=True), "size_bytes": file.size_bytes}


def line(file: "FileInfo") -> tuple[str, ...]:
    """Lay a file out as a line of the table."""
    size = str(file.size_bytes) if file.kind == "file" else ""
    return printable(file.path), file.kind, size, time_of(file, "modify_time")
