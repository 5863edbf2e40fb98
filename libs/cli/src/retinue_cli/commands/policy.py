"""retinue policy: what rules come to, for tools and for runtimes, and what other ones would."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue_cli.failures import CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_facts, print_json, print_table

if TYPE_CHECKING:
    from retinue.policy.v1.tool_service_pb2 import ExplainToolsResponse, ToolExplanation

app = typer.Typer(help="Say what rules come to, and what others would.", no_args_is_help=True)

COLUMNS = ("tool", "effect", "layer", "rule", "why")
COUNT_DEFAULT = 50
COUNT_MAX = 1000
TOKEN_TTL_S = 300
"""A token that is made for one question."""

Tenant = Annotated[str, typer.Option("--tenant", help="Name of a tenant; that of the kept token if none.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")]


@app.command("explain")
def explain(
    tenant: Tenant = "",
    run: Annotated[str, typer.Option("--run", help="Id of a run: why it got its runtime. No tools then.")] = "",
    tool: Annotated[str, typer.Option("--tool", help="Only this tool, and what each layer says of it.")] = "",
    runtime: Annotated[str, typer.Option("--runtime", help="The runtime; what a run would get if not given.")] = "",
    model: Annotated[str, typer.Option("--model", help="The model, as PROVIDER/NAME; the agent's if not given.")] = "",
    kind: Annotated[str, typer.Option("--kind", help="chat, a task's kind, or mcp.")] = "chat",
    principal: Annotated[str, typer.Option("--principal", help="Who asks; the agent itself if not given.")] = "",
    certificate: Annotated[str, typer.Option(envvar="RETINUE_TLS_CERT", help="A certificate to trust.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Say whether each tool may be called, is asked about, or is denied, and which rule decides; or why a run got its
    runtime."""
    where = State(state_dir)
    if run:
        return _explain_run(where, tenant, run, certificate, as_json=as_json)
    from retinue.policy.v1 import tool_service_pb2 as wire
    from retinue.policy.v1 import tool_service_pb2_grpc as wire_grpc

    from retinue_cli.mesh import Mesh, call

    with Mesh(where) as mesh:
        channel: Any = mesh.channel("policy")
        asked = wire.ExplainToolsRequest(
            tenant_id=mesh.tenant_of(tenant, where.token()),
            scope=wire.ToolScope(kind=kind, runtime=runtime, model=model, principal=principal),
            tool=tool,
        )
        stub: Any = wire_grpc.ToolServiceStub(channel)
        found: wire.ExplainToolsResponse = call(stub.ExplainTools, asked)
    if as_json:
        print_json(plain(found))
        return 0
    print_table(COLUMNS, [line(each) for each in found.tools])
    if tool and found.tools:
        typer.echo("")
        print_table(("layer", "says", "rule"), [(s.layer, s.effect, s.rule) for s in found.tools[0].steps])
    for entry in found.unknown:
        typer.echo(f"Means nothing: {entry}")
    typer.echo(f"Rules: {found.rules}")
    return 0


def line(explained: "ToolExplanation") -> tuple[str, ...]:
    """Lay a tool out as a line of the table."""
    decision = explained.decision
    return explained.tool, decision.effect, decision.layer, decision.rule, decision.reason


def plain(found: "ExplainToolsResponse") -> dict[str, Any]:
    """Make an object for programs: every field, also those that are empty."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _explain_run(where: State, tenant: str, run: str, certificate: str, *, as_json: bool) -> int:
    from retinue_cli.edge import Edge

    with Edge(where.require().address, _token(where, tenant), certificate=certificate) as edge:
        found = edge.decision(run)
    if as_json:
        print_json(found)
    else:
        tell_decision(run, found)
    return 0


def _token(where: State, tenant: str) -> str:
    """Find the kept token, or have one made for a tenant."""
    if not tenant:
        kept = where.token()
        if not kept:
            raise CommandError("Whose is it? Say --tenant NAME.")
        return kept
    from retinue_cli.mesh import Mesh

    with Mesh(where) as mesh:
        return mesh.issue(mesh.read_tenant(tenant).tenant_id, "", [], TOKEN_TTL_S)


def tell_decision(run: str, found: dict[str, Any]) -> None:
    """Print why a run got its runtime: the rules in order, what they were walked over, how the context came over."""
    from retinue_cli.decisions import facts_of

    runtime = f"{found['runtime']}, another than before" if found.get("switches_runtime") else found["runtime"]
    more = [(name, str(found.get(name, ""))) for name in ("model", "bundle")]
    print_facts(("run", run), ("runtime", runtime), *more)
    typer.echo("")
    print_table(("rule", "effect", "why"), [(r["rule"], r["effect"], r["reason"]) for r in found.get("rules", [])])
    snapshot = list(facts_of(found.get("snapshot") or {}))
    if snapshot:
        typer.echo("")
        print_table(("decided on", ""), snapshot)
    losses = found.get("losses", [])
    if losses:
        typer.echo("")
        print_table(("not held", "fate", "why"), [(each["field"], each["fate"], each["reason"]) for each in losses])


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rules for runtimes, as in runtimes.toml.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Say whether rules for runtimes can be followed by the mesh that runs; nothing is changed."""
    from retinue_cli.decisions import Decisions, read_rules
    from retinue_cli.mesh import Mesh

    rules = read_rules(file)
    with Mesh(State(state_dir)) as mesh:
        Decisions(mesh).check(rules)
    typer.echo(f"{file} can be followed.")
    return 0


@app.command("replay")
def replay(
    rules: Annotated[Path, typer.Option("--rules", metavar="FILE", help="Rules for runtimes, as in runtimes.toml.")],
    since: Annotated[str, typer.Option("--since", help="How far back, such as 24h, 30m or 7d.")] = "24h",
    tenant: Annotated[str, typer.Option("--tenant", help="Only this tenant's runs; all tenants' if not given.")] = "",
    count: Annotated[
        int, typer.Option("--count", help="Differences to show at most.", min=0, max=COUNT_MAX)
    ] = COUNT_DEFAULT,
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Say which runs would have got another runtime by other rules; nothing is changed."""
    from retinue_cli.decisions import COLUMNS, Decisions, line_of, read_rules
    from retinue_cli.durations import parse_ttl
    from retinue_cli.mesh import Mesh

    since_s, text = parse_ttl(since, "--since"), read_rules(rules)
    with Mesh(State(state_dir)) as mesh:
        tenant_id = mesh.read_tenant(tenant).tenant_id if tenant else ""
        replayed = Decisions(mesh).replay(text, since_s, tenant_id, count)
    if as_json:
        print_json(replayed.plain())
        return 0
    if replayed.differences:
        print_table(COLUMNS, [line_of(each) for each in replayed.differences])
        typer.echo("")
    for told in replayed.told():
        typer.echo(told)
    return 0
