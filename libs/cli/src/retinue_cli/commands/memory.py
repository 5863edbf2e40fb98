"""retinue memory: what is remembered of contacts for good."""

from typing import TYPE_CHECKING, Annotated

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_json, print_table, printable, time_of

if TYPE_CHECKING:
    from retinue.router.v1.memory_service_pb2 import Fact

app = typer.Typer(help="Read and change what is remembered.", no_args_is_help=True)

KINDS = ("preference", "profile", "event", "task", "note")
FOUND_DEFAULT = 10
FOUND_MAX = 50
"""The most that a search answers with, by contract."""

Contact = Annotated[
    str, typer.Argument(metavar="CONTACT", help='Of whom; "" for what concerns the tenant, whoever it speaks with.')
]
Tenant = Annotated[str, typer.Option("--tenant", help="Name of its tenant; that of the kept token if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")]


@app.command("list")
def list_facts(
    contact: Contact, tenant: Tenant = "", as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR
) -> int:
    """List what is remembered of a contact, by importance and then the newest first."""
    from retinue_cli.memory import Memory
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = Memory(mesh, mesh.tenant_of(tenant, where.token())).all(contact)
    _show(found, as_json=as_json)
    return 0


@app.command("search")
def search(
    contact: Contact,
    query: Annotated[str, typer.Argument(metavar="WORDS", help="What it is to fit.")],
    count: Annotated[int, typer.Option("--count", help="How many at most.", min=1, max=FOUND_MAX)] = FOUND_DEFAULT,
    tenant: Tenant = "",
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Find what fits words, best first; what concerns the tenant is found as well."""
    from retinue_cli.memory import Memory
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        found = Memory(mesh, mesh.tenant_of(tenant, where.token())).search(contact, query, count)
    _show(found, as_json=as_json)
    return 0


@app.command("add")
def add(
    contact: Contact,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The fact, in a sentence or a few.")],
    domain: Annotated[str, typer.Option("--domain", help="What it is about, such as work.")] = "",
    kind: Annotated[str, typer.Option("--kind", help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.")] = "",
    importance: Annotated[int, typer.Option("--importance", help="1 to 10.", min=1, max=10)] = 5,
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Remember a fact; one that is remembered already keeps the higher importance."""
    if kind not in ("", *KINDS):
        raise CommandError(f"--kind {kind!r} is none of {', '.join(KINDS)}.", EXIT_SETTINGS)
    if not text.strip():
        raise CommandError("Say what is to be remembered.", EXIT_SETTINGS)
    from retinue_cli.memory import Memory
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        kept = Memory(mesh, mesh.tenant_of(tenant, where.token())).add(contact, text, domain, kind, importance)
    typer.echo(f"{kept.fact_id} is remembered.")
    return 0


@app.command("forget")
def forget(
    contact: Contact,
    fact: Annotated[str, typer.Argument(metavar="FACT", help="A fact's id.")],
    tenant: Tenant = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Forget a fact."""
    from retinue_cli.memory import Memory
    from retinue_cli.mesh import Mesh

    where = State(state_dir)
    with Mesh(where) as mesh:
        Memory(mesh, mesh.tenant_of(tenant, where.token())).forget(contact, fact)
    typer.echo(f"{fact} is forgotten.")
    return 0


def line(fact: "Fact") -> tuple[str, ...]:
    """Lay a fact out as a line of the table; what somebody else has said gives the terminal no orders."""
    text = printable(" ".join(fact.text.split()))
    who = fact.contact or "everyone"
    return fact.fact_id, who, str(fact.importance), fact.domain, fact.kind, time_of(fact, "create_time"), text


def _show(facts: "list[Fact]", *, as_json: bool) -> None:
    if as_json:
        from google.protobuf.json_format import MessageToDict

        print_json([MessageToDict(fact, preserving_proto_field_name=True) for fact in facts])
        return
    print_table(("fact", "of", "importance", "about", "kind", "since", "what"), [line(fact) for fact in facts])
