"""retinue runs: what was asked of agents, and what of it was set aside."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_json, print_table, time_of

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from retinue.router.v1.dead_letter_service_pb2 import DeadLetter
    from retinue.router.v1.run_pb2 import Run

STATES = ("queued", "running", "waiting", "succeeded", "failed", "cancelled")
COUNT_DEFAULT = 50
COUNT_MAX = 1000
COUNTED_MAX = 1000
"""Open dead letters of a tenant that the router counts; a tenant that has so many may have more."""

TENANTS_READ_MAX = 100
"""Tenants whose dead letters are read where no tenant is named; those with most come first."""

app = typer.Typer(help="List runs, and decide about those that were set aside.", no_args_is_help=True)

Run_ = Annotated[str, typer.Argument(metavar="RUN", help="A run's id.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of the run's tenant; that of the kept token if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")]
Count = Annotated[int, typer.Option("--count", help="How many at most, newest first.", min=1, max=COUNT_MAX)]


@app.command("list")
def list_runs(
    tenant: Tenant = "",
    state: Annotated[str, typer.Option(help=f"Only those that are {', '.join(STATES[:-1])} or {STATES[-1]}.")] = "",
    contact: Annotated[str, typer.Option(help="Only this contact's.")] = "",
    count: Count = COUNT_DEFAULT,
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """List the newest runs of a tenant."""
    if state and state not in STATES:
        raise CommandError(f"--state {state!r} is none of {', '.join(STATES)}.", EXIT_SETTINGS)
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = mesh.runs(mesh.tenant_of(tenant, where.token()), contact, state, count)
    if as_json:
        print_json([_plain_run(run) for run in found])
    else:
        lines = [
            (r.run_id, r.contact, r.kind, _state(r), str(r.attempt_count), time_of(r, "create_time")) for r in found
        ]
        print_table(("run", "contact", "kind", "state", "attempts", "accepted"), lines)
    return 0


@app.command("dead")
def dead(
    tenant: Annotated[str, typer.Option(help="Only this tenant's; all tenants' if not given.")] = "",
    count: Count = COUNT_DEFAULT,
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """List the dead letters: runs that failed though nothing was wrong with what was asked, and wait for a decision."""
    from retinue_cli.mesh import Mesh

    found: list[tuple[str, DeadLetter]] = []
    with Mesh(State(state_dir)) as mesh:
        counts = mesh.count_dead_letters()
        if tenant:
            tenant_id = mesh.read_tenant(tenant).tenant_id
            counts = {tenant_id: counts.get(tenant_id, 0)}
        for tenant_id in list(counts)[:TENANTS_READ_MAX]:
            name = tenant or mesh.name_of(tenant_id)
            found += [(name, letter) for letter in mesh.open_dead_letters(tenant_id, count)]
    found = sorted(found, key=lambda one: one[1].run.run_id, reverse=True)[:count]
    if as_json:
        print_json([{"tenant": name, **_plain_letter(d), "run": _plain_run(d.run)} for name, d in found])
        return 0
    lines = [
        (name, d.run.run_id, d.run.contact, d.run.kind, str(d.run.attempt_count), time_of(d, "dead_time"), _why(d.run))
        for name, d in found
    ]
    print_table(("tenant", "run", "contact", "kind", "attempts", "set aside", "why"), lines)
    more = sum(counts.values()) - len(found)
    if more > 0:
        least = "at least " if max(counts.values()) >= COUNTED_MAX else ""
        typer.echo(f"… and {least}{more} more; name a tenant with --tenant, or raise --count")
    return 0


@app.command("show")
def show(run: Run_, tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Show a run; where it was set aside, with what was asked."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        tenant_id = mesh.tenant_of(tenant, where.token())
        found, letter = mesh.run(tenant_id, run), mesh.dead_letter(tenant_id, run)
    if as_json:
        print_json({**_plain_run(found), "dead_letter": _plain_letter(letter) if letter else None})
        return 0
    facts = [
        ("run", found.run_id),
        ("contact", found.contact),
        ("kind", found.kind),
        ("state", _state(found)),
        ("runtime", found.runtime),
        ("attempts", str(found.attempt_count)),
        ("accepted", time_of(found, "create_time")),
        ("begun", time_of(found, "start_time")),
        ("ended", time_of(found, "end_time")),
        ("trace", found.trace_id),
        ("why", _why(found)),
        ("answer", found.output_text),
    ]
    if letter:
        facts += [
            ("dead letter", f"{letter.state}, set aside {time_of(letter, 'dead_time')}"),
            ("retried as", letter.retry_run_id),
            ("asked", letter.text),
        ]
    for name, fact in facts:
        if fact:
            typer.echo(f"{name + ':':<13}{fact}")
    return 0


@app.command("retry")
def retry(run: Run_, tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Have a dead letter asked anew; asked again, this answers the same new run."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        accepted = mesh.retry(mesh.tenant_of(tenant, where.token()), run)
    if as_json:
        print_json(_plain_run(accepted))
    else:
        typer.echo(f"{accepted.run_id} is in the place of {run}; it is {_state(accepted)}.")
    return 0


@app.command("drop")
def drop(run: Run_, tenant: Tenant = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Take a dead letter off the list; the run stays as it is."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        mesh.drop(mesh.tenant_of(tenant, where.token()), run)
    typer.echo(f"{run} is off the list.")
    return 0


def _state(run: "Run") -> str:
    from retinue.router.v1 import run_pb2

    return run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()


def _why(run: "Run") -> str:
    return run.error.message if run.HasField("error") else ""


def _plain(message: "Message") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    # The details of an error are messages themselves, which are written only where their types are known.
    from google.rpc import error_details_pb2

    assert error_details_pb2.DESCRIPTOR.package == "google.rpc"
    return MessageToDict(message, preserving_proto_field_name=True)


def _plain_run(run: "Run") -> dict[str, Any]:
    return {**_plain(run), "state": _state(run)}


def _plain_letter(letter: "DeadLetter") -> dict[str, Any]:
    return {name: value for name, value in _plain(letter).items() if name != "run"}
