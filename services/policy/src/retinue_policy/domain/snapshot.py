"""All that a decision about the runtime depends on, beside the rules: facts about the run, its tenant, the runtimes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

AUTO = "auto"
CHAT = "chat"
OPENCLAW = "openclaw"
LIGHT = "light"
KNOWN_RUNTIMES = (OPENCLAW, LIGHT)

PLANS = ("free", "pro", "team", "enterprise")
"""Plans that the directory knows."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a tenant has no setting of its own."""

    concurrent_run_count: int = 64
    attempt_count: int = 3
    run_time_s: float = 600.0
    output_size_bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tenant:
    """What policy knows of a tenant; 0 and empty text mean the deployment's default."""

    concurrent_run_count: int = 0
    preferred_runtime: str = ""
    weight: float = 0.0
    model: str = ""
    plan: str = ""
    agent_id: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a runtime is: runs that it can execute at once (0: not known), that it executes, that wait for it."""

    slot_count: int = 0
    busy_count: int = 0
    waiting_count: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision depends on. `runtimes_on` is in the operator's order and never empty.

    `failing` holds the runtimes whose breaker lets nothing through, and `away` those that say themselves that they can
    take no run, each with the seconds until it is worth asking again.
    """

    kind: str
    runtimes_on: tuple[str, ...]
    requested_runtime: str = AUTO
    session_runtime: str = ""
    session_runtime_age_s: float | None = None
    tool_transaction_open: bool = False
    sticky_window_s: float = 900.0
    tenant_id: str = ""
    tenant: Tenant = Tenant()
    defaults: Defaults = Defaults()
    failing: Mapping[str, float] = field(default_factory=dict)
    away: Mapping[str, float] = field(default_factory=dict)
    load: Mapping[str, Load] = field(default_factory=dict)
    cell_plans: frozenset[str] = frozenset()

    @property
    def asked(self) -> str:
        """The runtime that the client insists on; empty if it leaves the choice to us."""
        return "" if self.requested_runtime in ("", AUTO) else self.requested_runtime

    @property
    def bound(self) -> str:
        """The runtime that an open tool call runs under: its end must be told to who began it."""
        return self.session_runtime if self.tool_transaction_open else ""

    def is_on(self, runtime: str) -> bool:
        """Whether a runtime is part of this deployment."""
        return runtime in self.runtimes_on

    @property
    def usable(self) -> list[str]:
        """The runtimes that are on, there, and do not fail, in the operator's order."""
        return [runtime for runtime in self.runtimes_on if runtime not in self.failing and runtime not in self.away]

    def wait_s(self, runtime: str) -> float:
        """Seconds until a runtime is worth asking for; 0 if it can be used."""
        return max(self.failing.get(runtime, 0.0), self.away.get(runtime, 0.0))

    @property
    def insisted(self) -> tuple[str, ...]:
        """The runtimes that the run can do with: one that was asked for, or is bound; else any that is on."""
        one = self.asked or self.bound
        return (one,) if one else self.runtimes_on
