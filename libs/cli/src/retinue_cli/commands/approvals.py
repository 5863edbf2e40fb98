"""retinue approvals: which tool calls wait for a person's word, and the word."""

from typing import TYPE_CHECKING, Annotated

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_json, print_table, time_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

STATES = ("pending", "allow_once", "allow_always", "deny", "expired")
COUNT_DEFAULT = 50
COUNT_MAX = 1000
app = typer.Typer(help="Decide whether tool calls may run.", no_args_is_help=True)

Approval = Annotated[str, typer.Argument(metavar="APPROVAL", help="An approval's id.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of its tenant; that of the kept token if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")]


@app.command("list")
def list_approvals(
    state: Annotated[str, typer.Option(help=f"Only those that are {', '.join(STATES[:-1])} or {STATES[-1]}.")] = STATES[
        0
    ],
    every: Annotated[bool, typer.Option("--all", help="Those in every state.")] = False,
    count: Annotated[
        int, typer.Option("--count", help="How many at most, newest first.", min=1, max=COUNT_MAX)
    ] = COUNT_DEFAULT,
    tenant: Tenant = "",
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """List the tool calls of a tenant that wait to be allowed."""
    if state not in STATES:
        raise CommandError(f"--state {state!r} is none of {', '.join(STATES)}.", EXIT_SETTINGS)
    from retinue_cli.approvals import Approvals
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = Approvals(mesh, mesh.tenant_of(tenant, where.token())).newest("" if every else state, count)
    if as_json:
        print_json([_plain(approval) for approval in found])
        return 0
    lines = [
        (a.approval_id, a.contact, a.tool, a.state, time_of(a, "expire_time"), a.summary, a.pattern or "-")
        for a in found
    ]
    print_table(("approval", "contact", "tool", "state", "until", "what it would do", "--always allows"), lines)
    return 0


@app.command("allow")
def allow(
    approval: Approval,
    always: Annotated[bool, typer.Option("--always", help="Calls like it as well, from now on.")] = False,
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Allow a tool call."""
    state = _decide(approval, "allow_always" if always else "allow_once", tenant, state_dir)
    told = "from now on" if state == "allow_always" else "this once"
    more = "; there is nothing, or no room, to allow for good" if always and state != "allow_always" else ""
    typer.echo(f"{approval} is allowed {told}{more}.")
    return 0


@app.command("deny")
def deny(approval: Approval, tenant: Tenant = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Deny a tool call; the agent hears of it and goes on without."""
    _decide(approval, "deny", tenant, state_dir)
    typer.echo(f"{approval} is denied.")
    return 0


def _decide(approval: str, decision: str, tenant: str, state_dir: StateDir) -> str:
    from retinue_cli.approvals import Approvals
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        return Approvals(mesh, mesh.tenant_of(tenant, where.token())).decide(approval, decision).state


@app.command("allowed")
def allowed(tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """List what was allowed for good."""
    from retinue_cli.approvals import Approvals
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = Approvals(mesh, mesh.tenant_of(tenant, where.token())).allowed()
    if as_json:
        print_json([_plain(allowance) for allowance in found])
        return 0
    lines = [(a.allowance_id, a.tool, a.pattern, a.principal, time_of(a, "create_time")) for a in found]
    print_table(("allowance", "tool", "calls", "by", "since"), lines)
    return 0


@app.command("forget")
def forget(
    allowance: Annotated[str, typer.Argument(metavar="ALLOWANCE", help="An allowance's id.")],
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Take back what was allowed for good; what is under way is not stopped."""
    from retinue_cli.approvals import Approvals
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        Approvals(mesh, mesh.tenant_of(tenant, where.token())).forget(allowance)
    typer.echo(f"{allowance} is not allowed any more.")
    return 0


def _plain(message: "Message") -> dict[str, object]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)
