"""retinue token, retinue revoke."""

from typing import Annotated

import typer

from retinue_cli.durations import parse_ttl
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir


def token(
    tenant: Annotated[str, typer.Option(help="Name of the tenant, which is made if it is new.")],
    user: Annotated[str, typer.Option(help="Who speaks within the tenant.  [default: owner]", show_default=False)] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What the token is good for, such as chat or admin; may be given several times."),
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long it lives: 30d, 12h, 90m, 3600.", show_default=True)] = "30d",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Print a token for a tenant, alone on standard output."""
    ttl_s = parse_ttl(ttl)
    from retinue_cli.mesh import Mesh

    with Mesh(State(state_dir)) as mesh:
        found = mesh.make_tenant(tenant)
        scopes = [part for text in scope or [] for part in text.replace(",", " ").split()]
        typer.echo(mesh.issue(found.tenant_id, user, scopes, ttl_s))
    return 0


def revoke(
    which: Annotated[str, typer.Argument(metavar="TOKEN_OR_JTI", help="The token, or the jti in it.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Have a token refused from now on; it takes up to five seconds to be heard everywhere."""
    jti, expires = which, None
    if "." in which:
        from retinue_cli.tokens import claims

        found = claims(which)
        jti, expires = str(found.get("jti", "")), int(found.get("exp", 0)) or None
    from retinue_cli.mesh import Mesh

    with Mesh(State(state_dir)) as mesh:
        mesh.revoke(jti, expires)
    typer.echo(f"{jti} is refused from now on.")
    return 0
