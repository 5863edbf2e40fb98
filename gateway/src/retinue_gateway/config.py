"""What an operator may set."""

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from RETINUE_<NAME>."""

    address: str
    """Where Envoy finds the gRPC service: unix:/path or host:port."""

    asgi_socket: str
    """Path of the unix socket where Envoy finds WebSocket, OpenAI's API, readiness and documents."""

    router_address: str
    """The router, which accepts and knows everything."""

    directory_address: str
    """The directory: signing keys and revoked tokens."""

    redis_url: str
    """The bus that events are heard on, as in unix:///path."""

    policy_address: str
    """Asked how a tenant's chat is kept apart from others'."""

    runtime_adapter_address: str
    """Has the instances."""

    portability_address: str = ""
    """Only asked for its health; so is the following. What has no address is left out of the answer."""

    sandbox_address: str = ""

    runtimes: str = "light"
    """Runtimes that are switched on, separated by commas: the models that OpenAI's clients may name."""

    trace_dir: str = ""
    """Folder where Envoy's spans are kept; nowhere if empty."""
