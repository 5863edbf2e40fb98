"""How the sandbox is assembled."""

from contextlib import AsyncExitStack
from pathlib import Path

from retinue_kit import process
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server

from retinue_sandbox import service
from retinue_sandbox.audit import Audit
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.config import Settings
from retinue_sandbox.egress import envoy, finding, injected, proxy
from retinue_sandbox.executions import Executions
from retinue_sandbox.files import servicer as files
from retinue_sandbox.files.roots import Roots
from retinue_sandbox.fitness import Fitness
from retinue_sandbox.pod import manifest
from retinue_sandbox.pod.backend import PodBackend
from retinue_sandbox.ports import Backend, Check, Isolation
from retinue_sandbox.refuse import RefuseBackend
from retinue_sandbox.sessions import Bounds, Sessions

USERS_FOLDER = ".users"
"""Beside the tenants' folders, and no tenant's name: who has which user of this machine."""

NO_WORKSPACES = Check(
    "workspaces", False, "there is no folder for tenants' files", "name one by RETINUE_WORKSPACES_DIR"
)


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the server; the self-test goes on meanwhile."""
    clock = SystemClock()
    audit = Audit(settings.audit_dir, clock)
    stack.callback(audit.close)
    folder = Path(settings.workspaces_dir).absolute()
    uids = Uids(folder / USERS_FOLDER, settings.box_uid_base, settings.box_uid_count)
    roots = Roots(folder, uids.of)
    stack.callback(roots.close)
    backend: Backend = RefuseBackend(NO_WORKSPACES)
    if settings.workspaces_dir:
        backend = make_backend(settings, folder, uids, audit, stack)
    stack.push_async_callback(backend.close)
    bounds = Bounds(
        settings.box_idle_s,
        settings.boxes_max,
        settings.tenant_boxes_max,
        settings.tenant_executions_max,
        # A pod is made within a second or two, and costs what it has reserved: none stands idle.
        settings.spare_boxes_max if settings.box_backend == "bwrap" else 0,
    )
    sessions = Sessions(backend, roots, bounds, clock)
    stack.push_async_callback(sessions.close)
    sessions.start()
    fitness = Fitness(backend, settings.self_test_interval_s)
    stack.push_async_callback(fitness.close)
    fitness.start()
    executions = Executions(sessions, fitness, audit, backend, clock)
    services = [service.service(service.SandboxServicer(executions, sessions, fitness, backend))]
    if settings.workspaces_dir:
        services.append(files.service(roots, sessions.fence, audit.record, fitness.require))
    return Server(settings.address, services)


def make_backend(settings: Settings, folder: Path, uids: Uids, audit: Audit, stack: AsyncExitStack) -> Backend:
    """Make what makes boxes. Raises SettingError."""
    if settings.box_backend == "pod":
        options = manifest.Options(
            settings.pod_image,
            settings.pod_runtime_class,
            Isolation(settings.pod_isolation),
            settings.pod_volume_claim,
            settings.pod_cpu_count,
            settings.pod_memory_mib,
        )
        account = Path(settings.kubernetes_account_dir)
        return PodBackend(options, settings.kubernetes_url, account, settings.pod_namespace)
    egress = proxy.EnvoyEgress(egress_options(settings), audit.record)
    stack.push_async_callback(egress.close)
    return BwrapBackend(folder, uids, bwrap_path=settings.bwrap_path, egress=egress)


def egress_options(settings: Settings) -> proxy.Options:
    """Read how boxes reach what policy grants. Raises SettingError."""
    secrets = injected.load(settings.egress_secrets)
    wants_authorities = bool(secrets or settings.egress_ca_file)
    return proxy.Options(
        program=finding.program(settings.envoy_path),
        folder=settings.egress_dir,
        secrets=secrets,
        ca_file=finding.authorities(settings.egress_ca_file) if wants_authorities else "",
        private=proxy.networks(settings.egress_private),
        user=envoy.user_beside(settings.box_uid_base, settings.box_uid_count),
    )


if __name__ == "__main__":
    process.main("sandbox", Settings, assemble)
