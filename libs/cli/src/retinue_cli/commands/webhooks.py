"""retinue webhooks: where a tenant's events are sent to, and what became of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_facts, print_json, print_table, time_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

KINDS = ("standard", "feishu")
STATES = ("pending", "delivered", "dead")
COUNT_DEFAULT = 50
COUNT_MAX = 200
app = typer.Typer(help="Have events sent to servers of one's own, and see what was.", no_args_is_help=True)

Webhook = Annotated[str, typer.Argument(metavar="WEBHOOK", help="A webhook's id.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of its tenant; that of the kept token if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")]


@app.command("list")
def list_webhooks(tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """List the webhooks of a tenant."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = mesh.list_webhooks(mesh.tenant_of(tenant, where.token()))
    if as_json:
        _print_json(found)
    else:
        lines = [(w.webhook_id, w.kind, w.state, w.url, " ".join(w.event_types)) for w in found]
        print_table(("webhook", "kind", "state", "url", "events"), lines)
    return 0


@app.command("show")
def show(
    webhook: Webhook, tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR
) -> int:
    """Show a webhook; its secret was shown when it was made."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = mesh.webhook(mesh.tenant_of(tenant, where.token()), webhook)
    if as_json:
        print_json(_plain(found))
        return 0
    print_facts(
        ("webhook", found.webhook_id),
        ("kind", found.kind),
        ("state", found.state),
        ("url", found.url),
        ("events", " ".join(found.event_types)),
        ("made", time_of(found, "create_time")),
    )
    return 0


@app.command("create")
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to send to.")],
    event: Annotated[
        list[str] | None, typer.Option("--event", help="A type of event, as often as needed; ends of runs if absent.")
    ] = None,
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(KINDS)}.")] = KINDS[0],
    secret: Annotated[
        str, typer.Option(envvar="RETINUE_WEBHOOK_SECRET", help="To sign with; made if absent, but for Feishu.")
    ] = "",
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Make a webhook. Its secret is shown this once."""
    if kind not in KINDS:
        raise CommandError(f"--kind {kind!r} is none of {', '.join(KINDS)}.", EXIT_SETTINGS)
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        made, used = mesh.create_webhook(mesh.tenant_of(tenant, where.token()), url, kind, list(event or []), secret)
    typer.echo(f"webhook: {made.webhook_id}")
    if used and not secret:
        typer.echo(f"secret:  {used}")
    typer.echo(f"events:  {' '.join(made.event_types)}")
    return 0


@app.command("on")
def switch_on(webhook: Webhook, tenant: Tenant = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Send to a webhook again, from now on."""
    return _switch(webhook, "active", tenant, state_dir)


@app.command("off")
def switch_off(webhook: Webhook, tenant: Tenant = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Send nothing more to a webhook; what happens meanwhile is not sent later."""
    return _switch(webhook, "off", tenant, state_dir)


def _switch(webhook: str, state: str, tenant: str, state_dir: StateDir) -> int:
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        mesh.set_webhook_state(mesh.tenant_of(tenant, where.token()), webhook, state)
    typer.echo(f"{webhook} is {state}.")
    return 0


@app.command("delete")
def delete(webhook: Webhook, tenant: Tenant = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Remove a webhook with all that was or is to be sent to it."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        mesh.delete_webhook(mesh.tenant_of(tenant, where.token()), webhook)
    typer.echo(f"{webhook} is removed.")
    return 0


@app.command("test")
def send_test(webhook: Webhook, tenant: Tenant = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """Send an event of the type webhook.test."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        delivery = mesh.test_webhook(mesh.tenant_of(tenant, where.token()), webhook)
    typer.echo(f"{delivery.delivery_id} is due; retinue webhooks deliveries {webhook} tells what became of it.")
    return 0


@app.command("deliveries")
def deliveries(
    webhook: Webhook,
    state: Annotated[str, typer.Option(help=f"Only those that are {', '.join(STATES[:-1])} or {STATES[-1]}.")] = "",
    count: Annotated[
        int, typer.Option("--count", help="How many at most, newest first.", min=1, max=COUNT_MAX)
    ] = COUNT_DEFAULT,
    tenant: Tenant = "",
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """List what was sent to a webhook, or waits to be."""
    if state and state not in STATES:
        raise CommandError(f"--state {state!r} is none of {', '.join(STATES)}.", EXIT_SETTINGS)
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = mesh.deliveries(mesh.tenant_of(tenant, where.token()), webhook, state, count)
    if as_json:
        _print_json(found)
        return 0
    lines = [
        (
            *(d.delivery_id, d.event_type, d.state, str(d.attempt_count), d.last_result),
            d.due_time.ToJsonString() if d.HasField("due_time") else "",
        )
        for d in found
    ]
    print_table(("delivery", "event", "state", "attempts", "last result", "next"), lines)
    return 0


@app.command("retry")
def retry(
    webhook: Webhook,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="A delivery's id.")],
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Send a delivery once more, whatever became of it."""
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        mesh.retry_delivery(mesh.tenant_of(tenant, where.token()), webhook, delivery)
    typer.echo(f"{delivery} is due once more; retinue webhooks deliveries {webhook} tells what became of it.")
    return 0


def _plain(message: "Message") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def _print_json(found: "Sequence[Message]") -> None:
    print_json([_plain(message) for message in found])
