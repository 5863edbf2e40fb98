"""The processes of the local deployment, as data: what each runs, needs, listens on, and how it tells of its health."""

import ipaddress
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from retinue_local import bundle_key, envoy, health, postgres, redis, sealing_keys, settings
from retinue_local.health import Check
from retinue_local.model_choice import ModelChoice
from retinue_local.options import Options
from retinue_local.paths import Paths
from retinue_local.postgres import Home
from retinue_local.runtimes import Runtimes
from retinue_local.spawning import Account

SERVICES = ("directory", "policy", "portability", "sandbox", "runtime-adapter", "router")
_STORES = ("postgres", "redis")
_INHERITED = ("PATH", "LANG", "HOME", "TMPDIR", "TZ", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_SECRET = "RETINUE_MODEL_API_KEY"
_POLICY_DIR = "RETINUE_POLICY_DIR"
_SEALING_KEYS = "RETINUE_SEALING_KEYS_FILE"
_BUNDLE_KEY = "RETINUE_BUNDLE_SIGNING_KEY_FILE"
_KEYS = {"router": _SEALING_KEYS, "courier": _SEALING_KEYS, "portability": _BUNDLE_KEY}
"""Who reads keys of the deployment's, and by which variable it learns where they are."""

_DEFAULTS = {"policy": {"RETINUE_CELL_PLANS": "team,enterprise"}}
"""Where the local deployment differs from the services' own. New tenants are of the plan `pro`: on one machine they
share a gateway, since each cell takes about a GiB."""

EDGE_STAGE, WORK_STAGE, SERVICE_STAGE, STORE_STAGE = range(4)
"""The order of the end: who lets work in, who does it, who is asked, who keeps it."""


STOP_GRACE_S = 15.0
"""A service gives calls under way ten seconds; the rest is for closing what it holds."""

WORKER_GRACE_MARGIN_S = 5.0
"""A worker lets runs end for as long as it is set to, gives back the others, and writes what is left of files. Where it
has less time than that, because everything ends, it is told again so long before its end."""

_WORKER_DRAIN = "RETINUE_DRAIN_S"
_WORKER_DRAIN_DEFAULT_S = "25"


async def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Plan:
    """One process."""

    name: str
    address: str
    check: Check
    command: tuple[str, ...] = ()
    """A program and its arguments, or the arguments of a Python module."""
    module: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """Processes that must serve before this one starts for the first time."""
    stage: int = SERVICE_STAGE
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = STOP_GRACE_S
    """How long it may take to leave when it alone is told to; then it is killed."""
    hurry_s: float = 0.0
    """So long before its time is over it is told to leave again, and then at once; 0 for who would not do it sooner."""
    place: Callable[[], int] | None = None
    """Tells apart who listens where it is called. Where it is set, a new one may take the place of one that serves."""
    death_signal: signal.Signals = signal.SIGKILL
    """What it gets if the supervisor is gone."""
    prepare: Callable[[], Awaitable[None]] = _nothing
    """Before each start."""
    settle: Callable[[], Awaitable[None]] = _nothing
    """Once it serves, before it counts as ready."""
    drain: Callable[[], Awaitable[None]] = _nothing
    """Before it is told to stop."""

    async def close(self) -> None:
        """Let go of what the check holds open."""
        if isinstance(self.check, health.ByGrpc | health.ByPostgres):
            await self.check.close()


class Ground(NamedTuple):
    """What the plan is made from."""

    options: Options
    paths: Paths
    home: Home
    model: ModelChoice
    edge_port: int
    model_port: int
    runtimes: Runtimes


def make(ground: Ground) -> list[Plan]:
    """List the processes. Raises SettingError where a service would refuse its settings."""
    plans = [_postgres(ground), _redis(ground)]
    if ground.model.is_offline:
        plans.append(_model(ground))
    # Neighbours are called when they are needed; only stores, and their tables, have to be there from the start.
    needs = {"directory": _STORES[:1], "router": _STORES}
    for name in SERVICES:
        plans.append(_service(ground, name, f"retinue_{name.replace('-', '_')}", needs.get(name, ())))
    plans.append(_service(ground, "gateway", "retinue_gateway", _STORES, WORK_STAGE))
    for number in range(1, ground.options.workers + 1):
        plans.append(_service(ground, f"worker-{number}", "retinue_router.worker", ("router",), WORK_STAGE))
    # The router owns the tables, and makes the keys that the courier reads.
    plans.append(_service(ground, "courier", "retinue_router.courier", ("router",), WORK_STAGE))
    plans.append(_envoy(ground))
    services = ((kind_of(item.name), item.module, item.environ) for item in plans if "RETINUE_NAME" in item.environ)
    settings.check(ground.options.overrides, services)
    return plans


def edge_address(ground: Ground) -> str:
    """Where clients on this machine come in."""
    scheme = "https" if ground.options.tls_cert else "http"
    host = ipaddress.ip_address(ground.options.host)
    if host.is_unspecified:  # listens everywhere, but is no address to connect to
        return f"{scheme}://{'[::1]' if host.version == 6 else '127.0.0.1'}:{ground.edge_port}"
    name = f"[{host}]" if host.version == 6 else str(host)
    return f"{scheme}://{name}:{ground.edge_port}"


def basic_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Keep of the caller's environment what any process needs; nobody's secrets."""
    return {"LANG": "C.UTF-8", **{name: environ[name] for name in _INHERITED if name in environ}}


def kind_of(name: str) -> str:
    """Tell which service a process is one of: workers are numbered."""
    return name.rstrip("0123456789").removesuffix("-")


def service_environ(ground: Ground, name: str) -> dict[str, str]:
    """Tell a service where its neighbours are, and pass on what the operator has set."""
    caller, folders = ground.options.environ, ground.paths
    kind = kind_of(name)
    environ = basic_environ(caller) | _DEFAULTS.get(kind, {})
    environ |= {k: v for k, v in caller.items() if k.startswith(("RETINUE_", "OTEL_")) and k != _SECRET}
    for neighbour in SERVICES:
        environ[f"RETINUE_{neighbour.upper().replace('-', '_')}_ADDRESS"] = folders.address(neighbour)
    environ |= {
        "RETINUE_ADDRESS": folders.address(name),
        "RETINUE_NAME": name,
        "RETINUE_METRICS_ADDRESS": folders.address(f"{name}-metrics"),
        "RETINUE_REDIS_URL": f"unix://{folders.socket('redis')}",
        "RETINUE_WORKSPACES_DIR": str(folders.workspaces),
        "RETINUE_TRACE_DIR": str(folders.traces),
        "RETINUE_AUDIT_DIR": caller.get("RETINUE_AUDIT_DIR") or str(folders.audit),
        "RETINUE_RUNTIMES": ground.runtimes.names,
        # Ten small processes: arenas for many threads would only hold memory back.
        "MALLOC_ARENA_MAX": "2",
    }
    if ground.model.base_url != "file":
        environ["RETINUE_MODEL_BASE_URL"] = ground.model.base_url or f"http://127.0.0.1:{ground.model_port}/v1"
        environ["RETINUE_MODEL"] = ground.model.model
    if kind == "runtime-adapter":
        environ |= _adapter_environ(ground)
    if kind in ("directory", "router"):  # each keeps its own schema up to date
        environ["RETINUE_MIGRATE_DSN"] = ground.home.dsn(postgres.SUPERUSER)
    if kind == "directory":
        environ["RETINUE_POSTGRES_DSN"] = ground.home.dsn("retinue_directory")
    if kind in _KEYS:
        environ.setdefault(_KEYS[kind], str(folders.bundle_key if kind == "portability" else folders.sealing_keys))
    if kind == "courier":
        environ["RETINUE_POSTGRES_DSN"] = ground.home.dsn("retinue_courier")
    if kind in ("router", "worker"):
        environ["RETINUE_POSTGRES_DSN"] = ground.home.dsn("retinue_router")
        environ["RETINUE_SWEEP_DSN"] = ground.home.dsn("retinue_sweep")
    if kind == "gateway":
        environ["RETINUE_ASGI_SOCKET"] = str(folders.socket("gateway-asgi"))
    environ |= settings.environ_of(ground.options.overrides, kind)
    if environ.get(_POLICY_DIR):  # services begin in another folder than their operator
        environ[_POLICY_DIR] = str(Path(environ[_POLICY_DIR]).absolute())
    return environ


def _adapter_environ(ground: Ground) -> dict[str, str]:
    """What it alone is told: the way to models, and where OpenClaw is."""
    caller = ground.options.environ
    environ = {k: v for k, v in caller.items() if k.lower() in _PROXIES}
    if ground.model.api_key:
        environ[_SECRET] = ground.model.api_key
    if ground.runtimes.openclaw:
        environ["RETINUE_OPENCLAW_DIR"] = str(ground.runtimes.openclaw.folder)
        state = caller.get("RETINUE_OPENCLAW_STATE_DIR") or str(ground.paths.openclaw_instances)
        environ["RETINUE_OPENCLAW_STATE_DIR"] = state
    return environ


def _service(ground: Ground, name: str, module: str, needs: tuple[str, ...], stage: int = SERVICE_STAGE) -> Plan:
    check, environ = health.ByGrpc(ground.paths.socket(name)), service_environ(ground, name)
    return Plan(
        name=name,
        address=ground.paths.address(name),
        check=check,
        module=module,
        environ=environ,
        needs=needs,
        stage=stage,
        grace_s=_worker_grace_s(environ) if kind_of(name) == "worker" else STOP_GRACE_S,
        hurry_s=WORKER_GRACE_MARGIN_S if kind_of(name) == "worker" else 0.0,
        place=check.place,
        prepare=_prepare_keys(ground, name, environ),
    )


def _prepare_keys(ground: Ground, name: str, environ: Mapping[str, str]) -> Callable[[], Awaitable[None]]:
    """Make the keys that a service reads; a file that the operator names is the operator's to make."""
    own = ground.paths
    if name == "router" and environ[_SEALING_KEYS] == str(own.sealing_keys):
        return partial(sealing_keys.prepare, own.sealing_keys)
    if name == "portability" and environ[_BUNDLE_KEY] == str(own.bundle_key):
        return partial(bundle_key.prepare, own.bundle_key)
    return _nothing


def _worker_grace_s(environ: Mapping[str, str]) -> float:
    with suppress(ValueError):  # the worker itself says what is wrong with it
        return float(environ.get(_WORKER_DRAIN) or _WORKER_DRAIN_DEFAULT_S) + WORKER_GRACE_MARGIN_S
    return STOP_GRACE_S


def _model(ground: Ground) -> Plan:
    address = f"http://127.0.0.1:{ground.model_port}"
    return Plan(
        name="model",
        address=address,
        check=health.by_http(f"{address}/health"),
        module="retinue_local.offline_model",
        command=("--port", str(ground.model_port)),
        environ=basic_environ(ground.options.environ),
    )


def _postgres(ground: Ground) -> Plan:
    home = ground.home
    return Plan(
        name="postgres",
        address=f"unix:{home.sockets}/.s.PGSQL.5432",
        check=health.ByPostgres(home.dsn(postgres.SUPERUSER, "postgres")),
        command=tuple(home.command()),
        environ={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        stage=STORE_STAGE,
        account=home.account,
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGINT,
        prepare=partial(postgres.prepare, home),
        settle=partial(postgres.make_database, home),
    )


def _redis(ground: Ground) -> Plan:
    socket = ground.paths.socket("redis")
    return Plan(
        name="redis",
        address=f"unix:{socket}",
        check=health.by_redis(socket),
        command=tuple(redis.command(socket)),
        environ={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        stage=STORE_STAGE,
    )


def _envoy(ground: Ground) -> Plan:
    admin = ground.paths.socket("envoy-admin")
    return Plan(
        name="envoy",
        address=edge_address(ground),
        check=health.by_http("http://admin/ready", admin),
        command=tuple(envoy.command(ground.paths)),
        environ={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        # It fetches the keys when it starts; without a gateway it would begin by refusing everybody.
        needs=("gateway", "directory"),
        stage=EDGE_STAGE,
        prepare=partial(envoy.prepare, ground.options, ground.paths, ground.edge_port),
        drain=partial(envoy.drain, admin),
    )


def log_file(folders: Paths, name: str) -> Path:
    """Name a process' log."""
    return folders.logs / f"{name}.log"
