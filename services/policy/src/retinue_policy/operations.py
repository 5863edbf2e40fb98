"""The verb of policy."""

from dataclasses import dataclass
from typing import Protocol

from retinue_policy.domain import rules
from retinue_policy.domain.rules import Decision, Defaults, Snapshot, Tenant


class Tenants(Protocol):
    """Where policy learns of tenants."""

    async def tenant(self, tenant_id: str) -> Tenant:
        """Read a tenant. Raises RetinueError(TENANT_NOT_FOUND or DEPENDENCY_UNAVAILABLE)."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """What the caller knows of the run."""

    kind: str
    requested_runtime: str
    session_runtime: str
    session_runtime_age_s: float | None
    tool_transaction_open: bool


class Policy:
    """Decides for one deployment: which runtimes are on, and what holds by default."""

    def __init__(
        self, tenants: Tenants, runtimes_on: tuple[str, ...], sticky_window_s: float, defaults: Defaults
    ) -> None:
        self._tenants = tenants
        self._runtimes_on = runtimes_on
        self._sticky_window_s = sticky_window_s
        self._defaults = defaults

    async def decide(self, tenant_id: str, run: Run) -> Decision:
        """Take the snapshot and decide. Raises what the rules and the tenants raise."""
        snapshot = Snapshot(
            kind=run.kind,
            runtimes_on=self._runtimes_on,
            requested_runtime=run.requested_runtime,
            session_runtime=run.session_runtime,
            session_runtime_age_s=run.session_runtime_age_s,
            tool_transaction_open=run.tool_transaction_open,
            sticky_window_s=self._sticky_window_s,
            tenant=await self._tenants.tenant(tenant_id),
            defaults=self._defaults,
        )
        return rules.decide(snapshot)
