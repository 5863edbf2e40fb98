"""Deciding how a run is to be executed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from retinue_kit.errors import Reason, RetinueError

from retinue_policy.domain import rules
from retinue_policy.domain.preferences import RuntimeRules
from retinue_policy.domain.rules import Decision
from retinue_policy.domain.snapshot import AUTO, CHAT, Defaults, Snapshot, Tenant
from retinue_policy.domain.tools.ruleset import Offer
from retinue_policy.operations import snapshots
from retinue_policy.operations.breakers import Breakers
from retinue_policy.operations.presence import Ability, Presence


class Tenants(Protocol):
    """Where policy learns of tenants."""

    async def tenant(self, tenant_id: str) -> Tenant:
        """Read a tenant. Raises RetinueError(TENANT_NOT_FOUND or DEPENDENCY_UNAVAILABLE)."""
        ...


class Ruling(Protocol):
    """Where the rules for runtimes are."""

    @property
    def rules(self) -> RuntimeRules:
        """The rules in force."""
        ...


@dataclass(frozen=True, slots=True)
class Deployment:
    """What an operator sets at the start: the runtimes that are on, the one to fall back to first; the plans that have
    cells; what holds where neither rules nor a tenant say otherwise."""

    runtimes_on: tuple[str, ...]
    cell_plans: frozenset[str]
    sticky_window_s: float
    defaults: Defaults


@dataclass(frozen=True, slots=True)
class Run:
    """What the caller knows of the run."""

    run_id: str
    kind: str
    requested_runtime: str
    session_runtime: str
    session_runtime_age_s: float | None
    tool_transaction_open: bool
    agent_id: str = ""
    principal: str = ""
    """Who asked for it; empty if that is not known."""


Offering = Callable[[str, Tenant, Run, Decision], Offer]
"""Says what a tenant's run that was decided about may be offered."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision, what it was made on, and what the caller owes for it: a report of a probe, or of a success that is
    worth knowing."""

    decision: Decision
    probes: bool
    watched: bool
    offer: Offer
    snapshot: dict[str, Any]
    abilities: Sequence[Ability]


class Policy:
    """Decides for one deployment, by the rules in force."""

    def __init__(
        self,
        tenants: Tenants,
        breakers: Breakers,
        presence: Presence,
        ruling: Ruling,
        deployment: Deployment,
        offering: Offering,
    ) -> None:
        self._tenants = tenants
        self._breakers = breakers
        self._presence = presence
        self._ruling = ruling
        self._deployment = deployment
        self._offering = offering

    async def decide(self, tenant_id: str, run: Run) -> Decided:
        """Take the snapshot and decide. Raises what the rules and the tenants raise."""
        tenant = await self._tenants.tenant(tenant_id)
        snapshot, in_force = self._snapshot(tenant_id, tenant, run), self._ruling.rules
        # Each turn but the last takes away a runtime, and with none left the rules refuse.
        while True:
            decision = rules.decide(snapshot, in_force)
            admission = await self._breakers.admit(decision.runtime, tenant_id, run.run_id)
            if not admission.wait_s:
                watched = self._breakers.watched(decision.runtime, tenant_id)
                return Decided(
                    decision,
                    admission.probes,
                    watched,
                    self._offering(tenant_id, tenant, run, decision),
                    snapshots.written(snapshot, in_force.name),
                    self._presence.abilities(decision.model),
                )
            snapshot = replace(snapshot, failing={**snapshot.failing, decision.runtime: admission.wait_s})

    async def usual(self, tenant_id: str, kind: str) -> tuple[str, str]:
        """Say which runtime and model a tenant's run would get now, if nothing special is asked for; no runtime if
        none can take it. Raises what the tenants raise."""
        tenant = await self._tenants.tenant(tenant_id)
        run = Run("", kind or CHAT, AUTO, "", None, tool_transaction_open=False)
        try:
            return rules.decide(self._snapshot(tenant_id, tenant, run), self._ruling.rules).runtime, tenant.model
        except RetinueError as error:
            if error.reason is not Reason.RUNTIME_UNAVAILABLE:
                raise
            return "", tenant.model

    def _snapshot(self, tenant_id: str, tenant: Tenant, run: Run) -> Snapshot:
        deployment = self._deployment
        return Snapshot(
            kind=run.kind,
            runtimes_on=deployment.runtimes_on,
            requested_runtime=run.requested_runtime,
            session_runtime=run.session_runtime,
            session_runtime_age_s=run.session_runtime_age_s,
            tool_transaction_open=run.tool_transaction_open,
            sticky_window_s=deployment.sticky_window_s,
            tenant_id=tenant_id,
            tenant=tenant,
            defaults=deployment.defaults,
            failing=self._breakers.failing(tenant_id, run.run_id),
            away=self._presence.away(),
            load=self._presence.load(),
            cell_plans=deployment.cell_plans,
        )
