"""retinue tenants, retinue tenant."""

from typing import Annotated

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir

PLANS = ("free", "pro", "team", "enterprise")


def tenants(state_dir: StateDir = DEFAULT_STATE_DIR) -> int:
    """List the tenants of the mesh."""
    from rich.console import Console
    from rich.table import Table

    from retinue_cli.mesh import Mesh

    with Mesh(State(state_dir)) as mesh:
        found = mesh.tenants()
    table = Table("name", "plan", "tenant id", "made", box=None, pad_edge=False)
    for tenant in found:
        table.add_row(tenant.name, tenant.plan, tenant.tenant_id, tenant.create_time.ToJsonString())
    Console().print(table)
    return 0


def tenant(
    name: Annotated[str, typer.Argument(help="Name of a tenant that is there.")],
    plan: Annotated[str, typer.Option(help=f"One of {', '.join(PLANS)}.")] = "",
    concurrent_runs: Annotated[
        int | None, typer.Option(help="Runs at once, 1 to 10000; 0 for the deployment's default.", min=0, max=10000)
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="Runtime preferred for chat; none if empty.")] = None,
    weight: Annotated[float | None, typer.Option(help="Share of the workers' time.", min=0, max=1000)] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Show what is set for a tenant, and change what is given."""
    if plan and plan not in PLANS:
        raise CommandError(f"--plan {plan!r} is none of {', '.join(PLANS)}.", EXIT_SETTINGS)
    from retinue_cli.mesh import Mesh

    with Mesh(State(state_dir)) as mesh:
        found = mesh.read_tenant(name)
        settings = found.settings
        if concurrent_runs is not None:
            settings.concurrent_run_count = concurrent_runs
        if runtime is not None:
            settings.preferred_runtime = runtime
        if weight is not None:
            settings.weight = weight
        if plan or any(value is not None for value in (concurrent_runs, runtime, weight)):
            found = mesh.update_tenant(found.tenant_id, plan, settings)
    settings = found.settings
    typer.echo(f"{found.name}  {found.tenant_id}  plan {found.plan}")
    typer.echo(f"runs at once: {settings.concurrent_run_count or 'default'}  weight: {settings.weight or 1:g}")
    typer.echo(f"preferred runtime: {settings.preferred_runtime or 'none'}  agent: {found.agent.name}")
    return 0
