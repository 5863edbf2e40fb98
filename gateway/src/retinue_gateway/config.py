"""What an operator may set."""

import msgspec

UPLOAD_CONTENT_TYPES = (
    "text/* image/* audio/* video/* font/* application/json application/*+json application/jsonl application/x-ndjson "
    "application/pdf application/rtf application/xml application/*+xml application/yaml application/x-yaml "
    "application/toml application/sql application/javascript application/x-python-code application/x-sh "
    "application/zip application/gzip application/x-gzip application/x-tar application/x-bzip2 application/x-xz "
    "application/x-7z-compressed application/zstd application/epub+zip application/msword application/vnd.ms-* "
    "application/vnd.openxmlformats-officedocument.* application/vnd.oasis.opendocument.* "
    "application/vnd.sqlite3 application/x-sqlite3 application/vnd.apache.parquet application/octet-stream"
)
"""Documents, data, pictures, sound, archives, and bytes that nobody has named. What is left out are envelopes, which
would be kept as they are (multipart, forms), and programs that say so."""


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
    """Makes and takes bundles; without it there are none. What has no address, here or below, is not asked for its
    health."""

    sandbox_address: str = ""
    """Keeps the tenants' files, and has their boxes; without it there are none, and no `/v1/mcp`."""

    mcp_hosts: str = "127.0.0.1:*,localhost:*,[::1]:*"
    """Public names of this address, separated by commas, with `:*` for any port: a request of MCP that names another
    host, or comes from a page of another one, is refused."""

    upload_content_types: str = UPLOAD_CONTENT_TYPES
    """Content types of files that are let in, separated by spaces; `*` stands for anything."""

    runtimes: str = "light"
    """Runtimes that are switched on, separated by commas: the models that OpenAI's clients may name."""

    trace_dir: str = ""
    """Folder where Envoy's spans are kept; nowhere if empty."""
