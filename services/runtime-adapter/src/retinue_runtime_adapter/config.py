"""What an operator may set."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from retinue_kit.config import SettingError, check_bounds

from retinue_runtime_adapter.domain.models import Catalogue, CatalogueError, Model

RUNTIMES = ("openclaw", "light")
"""Runtimes that this build can drive."""


BOUNDS = {
    "model_window_tokens": (0, 100_000_000),
    "window_warn_tokens": (0, 100_000_000),
    "window_min_tokens": (0, 100_000_000),
    "openclaw_shared_count": (0, 100),
    "openclaw_warm_cell_count": (0, 1000),
    "openclaw_cell_count_max": (0, 1000),
    "openclaw_run_count": (1, 32),
    "openclaw_waiting_count": (0, 10_000),
    "openclaw_idle_s": (1, 604_800),
    "openclaw_heap_mib": (256, 65_536),
    "openclaw_memory_mib": (512, 1_048_576),
    "openclaw_orphan_s": (0, 600),
}
"""The least and the most of a number."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the process, each from RETINUE_ and its name in capitals."""

    address: str
    """Where to listen: `unix:/path` or `host:port`."""

    runtimes: str = "light"
    """Runtimes that are on, separated by commas."""

    model_base_url: str = ""
    """Endpoint that speaks OpenAI's chat completions; usually ends in /v1. May be missing if there is a models file."""

    model_api_key: str = ""
    """Credential for the endpoint; several, separated by commas, are rotated. Empty for local servers."""

    model: str = "offline"
    """What the endpoint calls the model."""

    models_file: str = ""
    """JSON file with further providers and models; see the service's README."""

    model_window_tokens: int = 0
    """Tokens that the model at the endpoint above can read; 0 if unknown: then nothing is refused beforehand."""

    window_warn_tokens: int = 32_000
    """A model whose window is smaller is warned of at start: conversations on it are summed up often."""

    window_min_tokens: int = 16_000
    """A model whose window is smaller is not called: persona, tools and a few turns do not fit. 0 calls any."""

    embedding_model: str = ""
    """What its endpoint calls the model that turns texts into vectors; empty: there is none."""

    embedding_provider: str = ""
    """Which provider of the models file has it; empty: the default model's."""

    model_connect_timeout_s: float = 3.0
    """Seconds for a connection to the endpoint: a second lost packet."""

    model_first_timeout_s: float = 60.0
    """Seconds until the first token: a local model may have to be loaded from disk."""

    model_chunk_timeout_s: float = 60.0
    """Seconds between two chunks; a model that thinks aloud is not silent that long."""

    openclaw_dir: str = ""
    """Folder of an installed OpenClaw, as `deploy/openclaw` makes it; empty if there is none."""

    openclaw_state_dir: str = ""
    """Folder for the instances' own folders; what is in it when the process starts is removed."""

    openclaw_backend: str = "process"
    """How instances run: `process`, `docker` or `kubernetes`."""

    openclaw_shared_count: int = 1
    """Shared gateways that are kept running."""

    openclaw_warm_cell_count: int = 0
    """Cells that are kept running before a tenant needs one; each takes about a GiB."""

    openclaw_cell_count_max: int = 8
    """Cells at once, the warm ones included."""

    openclaw_run_count: int = 4
    """Runs at once in one gateway: more of them make each slower and none faster."""

    openclaw_waiting_count: int = 64
    """Runs that may wait to be admitted to one gateway."""

    openclaw_idle_s: float = 1800.0
    """A cell without a run for so long is ended, and a tenant's agent on a shared gateway removed."""

    openclaw_heap_mib: int = 512
    """Old space of a gateway's heap. 192 is too little for one turn."""

    openclaw_memory_mib: int = 3072
    """A gateway that uses more is replaced once its runs are over; one that uses half as much again at once. It takes
    750 from the beginning, and about 60 for each agent that was active lately."""

    openclaw_orphan_s: float = 15.0
    """A run that nobody follows any more goes on for so long: time for another worker to take it up."""

    sandbox_address: str = ""
    """The sandbox, where tools run; empty: there is none, and every tool that wants a box fails."""

    policy_address: str = ""
    """Policy, which authorizes each call of a tool; empty: there is none, and the light runtime offers no tool."""

    router_address: str = ""
    """The router, where tasks are scheduled; empty: no tool does that."""

    mcp_servers: str = ""
    """JSON file with the MCP servers whose tools tenants may be offered; see the service's README."""

    openclaw_tools: bool = True
    """Whether OpenClaw's agents are given tools, where there is a sandbox and policy to ask."""

    openclaw_bridge_address: str = "127.0.0.1:0"
    """Where the tools' endpoint for gateways listens; port 0 takes a free one."""

    openclaw_bridge_url: str = ""
    """How instances reach that endpoint; must be set where they run in containers or pods."""

    openclaw_proxy_address: str = "127.0.0.1:0"
    """Where the model endpoint for gateways listens; port 0 takes a free one."""

    openclaw_proxy_url: str = ""
    """How instances reach that endpoint, ending in /v1; must be set where they run in containers or pods."""

    openclaw_image: str = ""
    """Image of an instance, as `deploy/openclaw/Dockerfile` makes it; for Docker and Kubernetes."""

    openclaw_owner: str = ""
    """Name of this adapter on the instances that it begins, for Docker and Kubernetes: up to 63 letters, digits, dots
    and dashes. A process of the same name ends what the former one left. Empty: made of the host's name, and for Docker
    of the state folder's too."""

    openclaw_cpu_count: float = 2.0
    """Processors that a container or pod may use."""

    openclaw_process_count_max: int = 256
    """Processes and threads in a container; a pod's are limited by its node."""

    openclaw_container_runtime: str = ""
    """Runtime of containers, or runtime class of pods, such as one of gVisor; empty for the usual one."""

    openclaw_docker_socket: str = "/var/run/docker.sock"
    """Where the Docker engine listens."""

    openclaw_docker_network: str = ""
    """Network in which containers are reached by their addresses. Empty: their ports are published on loopback."""

    openclaw_kubernetes_url: str = ""
    """The API server, such as https://host:port; empty: as a pod's own environment says."""

    openclaw_kubernetes_namespace: str = ""
    """Namespace of the pods; empty: the service account's."""

    openclaw_kubernetes_account_dir: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    """Folder with the service account's `token`, `ca.crt` and `namespace`."""

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)


PRICE_MAX = 1_000_000.0
"""Price of a million tokens; more is a slip of the pen."""

MCP_SERVERS_MAX = 32
"""MCP servers of a deployment: each is asked for its tools by the runs that may use them."""

MCP_NAME_LENGTH_MAX = 24
"""Characters of a server's name, so that its tools' names have room for their own."""

MCP_TIMEOUT_MAX_S = 600.0
"""The longest that a call of an MCP server's tool may take: as long as an attempt by default."""

_SERVER_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*\Z")

Price = Annotated[float, msgspec.Meta(ge=0, le=PRICE_MAX)]


class ProviderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint."""

    base_url: str
    api_keys: list[str] = []
    window_tokens: int = 0
    """Tokens that its models can read, where their own entries do not say it; what is longer is not sent. 0 if
    unknown."""
    schema: Literal["openai", "gemini"] = "openai"
    """Which part of JSON schema it takes in the description of a tool."""
    tools: bool = True
    """Whether its models can call tools; none is offered otherwise."""


class McpServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An MCP server, reached over streamable HTTP."""

    url: str
    headers: dict[str, str] = {}
    tenants: list[str] | Literal["*"] = []
    """Who may be offered its tools: ids of tenants, or "*" for all."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=MCP_TIMEOUT_MAX_S)] = 30.0
    """Seconds for one call."""

    def serves(self, tenant_id: str) -> bool:
        """Whether a tenant may be offered its tools."""
        return self.tenants == "*" or tenant_id in self.tenants


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model."""

    name: str
    provider: str
    model: str
    aliases: list[str] = []
    fallback: str = ""
    input_price: Price = 0.0
    output_price: Price = 0.0
    """Price of a million tokens read and written, in whatever currency the deployment counts; 0 if unknown."""
    window_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens that it can read; 0: as its provider says."""


class ModelsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The models file."""

    providers: dict[str, ProviderEntry] = {}
    models: list[ModelEntry] = []
    default: str = ""


class Models(msgspec.Struct, frozen=True):
    """Providers by name, and the models that they serve."""

    providers: dict[str, ProviderEntry]
    catalogue: Catalogue


def read_runtimes(settings: Settings) -> list[str]:
    """The runtimes that are on. Raises SettingError for one that this build does not have."""
    names = list(dict.fromkeys(name.strip() for name in settings.runtimes.split(",") if name.strip()))
    for name in names:
        if name not in RUNTIMES:
            raise SettingError(f"RETINUE_RUNTIMES: there is no runtime {name!r}; there is {', '.join(RUNTIMES)}.")
    if not names:
        raise SettingError(f"RETINUE_RUNTIMES names no runtime; there is {', '.join(RUNTIMES)}.")
    return names


def _check_url(setting: str, url: str) -> None:
    parts = urlsplit("")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise SettingError(f"{setting}={url!r} is not an address such as http://host:port/v1.")
    if parts.username is not None:
        raise SettingError(f"{setting} holds a user name; credentials belong into the API key.")


def _check_keys(setting: str, keys: list[str]) -> None:
    if any(not key.isprintable() or not key.isascii() for key in keys):
        raise SettingError(f"{setting} holds a key with a character that no header can carry.")


def _read_file(path: str) -> ModelsFile:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=ModelsFile)
    except OSError as error:
        raise SettingError(f"RETINUE_MODELS_FILE={path!r} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"RETINUE_MODELS_FILE={path!r} is not valid: {error}.") from None


def read_mcp_servers(settings: Settings) -> dict[str, McpServer]:
    """Read the MCP servers by name; none without a file. Raises SettingError that names what is wrong."""
    path = settings.mcp_servers
    if not path:
        return {}
    try:
        servers = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, McpServer])
    except OSError as error:
        raise SettingError(f"RETINUE_MCP_SERVERS={path!r} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"RETINUE_MCP_SERVERS={path!r} is not valid: {error}.") from None
    if len(servers) > MCP_SERVERS_MAX:
        raise SettingError(f"RETINUE_MCP_SERVERS={path!r} names more than {MCP_SERVERS_MAX} servers.")
    for name, server in servers.items():
        if not _SERVER_NAME.match(name) or len(name) > MCP_NAME_LENGTH_MAX:
            raise SettingError(
                f"RETINUE_MCP_SERVERS: {name!r} must be small letters and digits, with single dashes or underscores "
                f"between them, {MCP_NAME_LENGTH_MAX} characters at most."
            )
        _check_url(f"RETINUE_MCP_SERVERS: {name}.url", server.url)
        _check_keys(f"RETINUE_MCP_SERVERS: {name}.headers", [*server.headers, *server.headers.values()])
    return servers


def _model(entry: ModelEntry, provider: ProviderEntry) -> Model:
    return Model(
        entry.name,
        entry.provider,
        entry.model,
        tuple(entry.aliases),
        entry.fallback,
        entry.input_price,
        entry.output_price,
        entry.window_tokens or provider.window_tokens,
    )


def read_models(settings: Settings) -> Models:
    """Gather the models from the variables and the file. Raises SettingError that names what is wrong."""
    found = _read_file(settings.models_file) if settings.models_file else ModelsFile()
    providers = dict(found.providers)
    models = list(found.models)
    if settings.model_base_url:
        _check_url("RETINUE_MODEL_BASE_URL", settings.model_base_url)
        keys = [key.strip() for key in settings.model_api_key.split(",") if key.strip()]
        _check_keys("RETINUE_MODEL_API_KEY", keys)
        providers["environment"] = ProviderEntry(settings.model_base_url, keys, settings.model_window_tokens)
        if all(settings.model not in (model.name, *model.aliases) for model in models):
            models.append(ModelEntry(settings.model, "environment", settings.model))
    elif not settings.models_file:
        raise SettingError("RETINUE_MODEL_BASE_URL is not set, and neither is RETINUE_MODELS_FILE.")
    for name, provider in found.providers.items():
        _check_url(f"RETINUE_MODELS_FILE: providers.{name}.base_url", provider.base_url)
        _check_keys(f"RETINUE_MODELS_FILE: providers.{name}.api_keys", provider.api_keys)
    for model in models:
        if model.provider not in providers:
            raise SettingError(f"RETINUE_MODELS_FILE: model {model.name!r} names no provider: {model.provider!r}.")
    if not models:
        raise SettingError("RETINUE_MODELS_FILE names no model.")
    default = found.default or (settings.model if settings.model_base_url else models[0].name)
    try:
        catalogue = Catalogue((_model(one, providers[one.provider]) for one in models), default)
    except CatalogueError as error:
        raise SettingError(f"RETINUE_MODELS_FILE: {error}.") from None
    return Models(providers, catalogue)
