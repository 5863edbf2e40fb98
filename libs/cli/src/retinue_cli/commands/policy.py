"""retinue policy: what a tenant's agent may do with its tools, and which rule says so."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_json, print_table

if TYPE_CHECKING:
    from retinue.policy.v1.tool_service_pb2 import ExplainToolsResponse, ToolExplanation

app = typer.Typer(help="Say what the rules for tools come to.", no_args_is_help=True)

COLUMNS = ("tool", "effect", "layer", "rule", "why")


@app.callback()
def policy() -> None:
    """Keep the command a group although it has one member."""


@app.command("explain")
def explain(
    tenant: Annotated[str, typer.Option("--tenant", help="Name of a tenant; that of the kept token if none.")] = "",
    tool: Annotated[str, typer.Option("--tool", help="Only this tool, and what each layer says of it.")] = "",
    runtime: Annotated[str, typer.Option("--runtime", help="The runtime; what a run would get if not given.")] = "",
    model: Annotated[str, typer.Option("--model", help="The model, as PROVIDER/NAME; the agent's if not given.")] = "",
    kind: Annotated[str, typer.Option("--kind", help="chat, a task's kind, or mcp.")] = "chat",
    principal: Annotated[str, typer.Option("--principal", help="Who asks; the agent itself if not given.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Say whether each tool may be called, is asked about, or is denied, and which rule decides."""
    from retinue.policy.v1 import tool_service_pb2 as wire
    from retinue.policy.v1 import tool_service_pb2_grpc as wire_grpc

    from retinue_cli.mesh import Mesh, call

    where = State(state_dir)
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
