"""The `mcp` package's server with the tools, as an ASGI application. Nobody but `endpoint.load` imports this, late."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.transport_security import TransportSecuritySettings

from retinue_gateway import asgi
from retinue_gateway.credentials import Caller
from retinue_gateway.mcp import tools
from retinue_gateway.mcp.boxes import Ask, Boxes, session_of
from retinue_gateway.mcp.endpoint import CALLER
from retinue_gateway.mcp.keeping import Keeping

SESSION_KEY = "mcp-session-id"
"""What a client may tell its conversations apart by. We hand out none, so that any process may serve any request."""


def make(
    boxes: Boxes, keeping: Keeping, names: list[str], path: str
) -> tuple[asgi.SocketHandler, Callable[[], AbstractAsyncContextManager[None]]]:
    """Make the application, and what has to be entered while it serves. `names` are those of its address."""
    server = tools.server(boxes, keeping, _read)
    app = server.streamable_http_app(
        streamable_http_path=path,
        stateless_http=True,
        max_request_body_size=asgi.BODY_SIZE_MAX_BYTES,
        transport_security=TransportSecuritySettings(
            allowed_hosts=names,
            allowed_origins=[f"{scheme}://{name}" for name in names for scheme in ("http", "https")],
        ),
    )
    return app, server.session_manager.run


def _read(context: Context, tool: str, arguments: Mapping[str, Any]) -> Ask:
    """Read who calls: out of the request that Envoy let in, and nothing that a client says in a call."""
    request = context.request_context.request
    assert request is not None
    caller: Caller = request.scope[CALLER]
    given = request.headers.get(SESSION_KEY, "")
    return Ask(caller, session_of(caller, given), str(context.request_context.request_id), tool, arguments)
