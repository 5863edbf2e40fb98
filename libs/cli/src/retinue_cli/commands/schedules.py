"""retinue schedules: tasks that come again by the clock."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_facts, print_json, print_table, time_of

if TYPE_CHECKING:
    from retinue.router.v1.schedule_service_pb2 import Schedule

app = typer.Typer(help="Have tasks come again by the clock.", no_args_is_help=True)

Schedule_ = Annotated[str, typer.Argument(metavar="SCHEDULE", help="A schedule's id.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of its tenant; that of the kept token if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")]


@app.command("list")
def list_schedules(
    tenant: Tenant = "",
    contact: Annotated[str, typer.Option(help="Only this contact's.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """List the schedules of a tenant, newest first."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = mesh.list_schedules(mesh.tenant_of(tenant, where.token()), contact)
    if as_json:
        print_json([_plain(schedule) for schedule in found])
        return 0
    lines = [
        (s.schedule_id, s.contact, s.kind, s.cron, s.time_zone, time_of(s, "next_time") or s.state, s.last_run_id)
        for s in found
    ]
    print_table(("schedule", "contact", "kind", "cron", "time zone", "next", "last run"), lines)
    return 0


@app.command("show")
def show(
    schedule: Schedule_, tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR
) -> int:
    """Show a schedule with what its tasks are asked."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = mesh.schedule(mesh.tenant_of(tenant, where.token()), schedule)
    plain = _plain(found)
    if as_json:
        print_json(plain)
        return 0
    print_facts(
        ("schedule", found.schedule_id),
        ("contact", found.contact),
        ("kind", found.kind),
        ("state", found.state),
        ("comes", f"{found.cron} in {found.time_zone}"),
        ("next", time_of(found, "next_time")),
        ("last run", found.last_run_id),
        ("made", time_of(found, "create_time")),
        ("input", json.dumps(plain.get("input", {}), ensure_ascii=False)),
    )
    return 0


@app.command("create")
def create(
    contact: Annotated[str, typer.Argument(metavar="CONTACT", help="Hears of each end.")],
    cron: Annotated[str, typer.Argument(metavar="CRON", help='When, as in "30 7 * * MON-FRI".')],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the agent is told each time.")] = "",
    kind: Annotated[str, typer.Option(help="The tasks' kind, which policy goes by.")] = "scheduled",
    time_zone: Annotated[str, typer.Option(help="Where the clock hangs, as in Europe/Berlin.")] = "UTC",
    given: Annotated[str, typer.Option("--input", help="The tasks' input, a JSON object, instead of a text.")] = "",
    tenant: Tenant = "",
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Make a schedule."""
    if bool(text) == bool(given):
        raise CommandError("Say what is to be done: either a TEXT, or --input.", EXIT_SETTINGS)
    asked = {"text": text} if text else _object(given)
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        tenant_id = mesh.tenant_of(tenant, where.token())
        made = mesh.create_schedule(tenant_id, contact, kind, asked, cron, time_zone)
    _say(made, as_json)
    return 0


@app.command("pause")
def pause(
    schedule: Schedule_, tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR
) -> int:
    """Let a schedule rest; tasks that were accepted go on."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        _say(mesh.pause_schedule(mesh.tenant_of(tenant, where.token()), schedule), as_json)
    return 0


@app.command("resume")
def resume(
    schedule: Schedule_, tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR
) -> int:
    """Let a schedule go on from its next time; what it missed is not made up for."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        _say(mesh.resume_schedule(mesh.tenant_of(tenant, where.token()), schedule), as_json)
    return 0


@app.command("delete")
def delete(schedule: Schedule_, tenant: Tenant = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Remove a schedule; tasks that were accepted go on."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        mesh.delete_schedule(mesh.tenant_of(tenant, where.token()), schedule)
    typer.echo(f"{schedule} is gone.")
    return 0


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CommandError(f"--input is no JSON: {error}.", EXIT_SETTINGS) from None
    if not isinstance(found, dict):
        raise CommandError("--input must be a JSON object.", EXIT_SETTINGS)
    return found


def _plain(schedule: "Schedule") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(schedule, preserving_proto_field_name=True)


def _say(schedule: "Schedule", as_json: bool) -> None:
    if as_json:
        print_json(_plain(schedule))
    elif schedule.HasField("next_time"):
        typer.echo(f"{schedule.schedule_id} comes next at {time_of(schedule, 'next_time')}.")
    else:
        typer.echo(f"{schedule.schedule_id} is paused.")
