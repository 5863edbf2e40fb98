"""The rules, as two tables: what is refused, and what picks the runtime.

`decide` walks them over a snapshot. The tables can be read, tested by row, and replayed on snapshots of the past.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from retinue_kit.errors import Reason, RetinueError

AUTO = "auto"
CHAT = "chat"
OPENCLAW = "openclaw"
LIGHT = "light"
KNOWN_RUNTIMES = (OPENCLAW, LIGHT)

HAS_CELLS = (OPENCLAW,)
"""Runtimes that run as processes of their own, so that a tenant can be given one alone."""

SHARED = "shared"
CELL = "cell"

USUAL_WEIGHT = 1.0


class Effect(StrEnum):
    """What a rule does when it fires."""

    PREFER = "prefer"
    REQUIRE = "require"
    FORBID = "forbid"
    FALL_BACK = "fall_back"
    LIMIT = "limit"


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
    tenant: Tenant = Tenant()
    defaults: Defaults = Defaults()
    failing: Mapping[str, float] = field(default_factory=dict)
    away: Mapping[str, float] = field(default_factory=dict)
    cell_plans: frozenset[str] = frozenset()

    @property
    def asked(self) -> str:
        """The runtime that the client insists on; empty if it leaves the choice to us."""
        return "" if self.requested_runtime in ("", AUTO) else self.requested_runtime

    @property
    def bound(self) -> str:
        """The runtime that an open tool call runs under: its end must be told to who began it."""
        return self.session_runtime if self.tool_transaction_open else ""

    @property
    def sticky(self) -> bool:
        """Whether the session used its runtime so recently that it would rather keep it."""
        age = self.session_runtime_age_s
        return bool(self.session_runtime) and age is not None and age <= self.sticky_window_s

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


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule that fired."""

    rule: str
    effect: Effect
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run and its tenant may use."""

    concurrent_run_count: int
    attempt_count: int
    run_time_s: float
    output_size_bytes: int
    weight: float


@dataclass(frozen=True, slots=True)
class Decision:
    """How a run is to be executed; of the rules that fired, the last one decided the runtime."""

    runtime: str
    model: str
    isolation: str
    switches_runtime: bool
    limits: Limits
    rules: tuple[Fired, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """When a run is not executed, and with which reason; `{…}` stands for a field of the snapshot.

    One that `passes` does not hold for ever: the error says when to ask again.
    """

    name: str
    when: Callable[[Snapshot], bool]
    error: Reason
    reason: str
    passes: bool = False


REFUSALS = (
    Refusal(
        "requested_runtime_unknown",
        lambda s: bool(s.asked) and s.asked not in KNOWN_RUNTIMES,
        Reason.RUNTIME_UNAVAILABLE,
        "There is no runtime of the name that was asked for.",
    ),
    Refusal(
        "requested_runtime_off",
        lambda s: bool(s.asked) and not s.is_on(s.asked),
        Reason.RUNTIME_UNAVAILABLE,
        "The runtime {asked} was asked for and is not switched on here.",
    ),
    Refusal(
        "tool_transaction_open",
        lambda s: bool(s.asked and s.bound) and s.asked != s.bound,
        Reason.TOOL_TRANSACTION_OPEN,
        "A tool call is open under {bound}; the runtime cannot change to {asked} before it has ended.",
    ),
    Refusal(
        "tool_transaction_runtime_off",
        lambda s: bool(s.bound) and not s.is_on(s.bound),
        Reason.RUNTIME_UNAVAILABLE,
        "A tool call is open under {bound}, which is not switched on any more.",
    ),
    Refusal(
        "requested_runtime_away",
        lambda s: s.asked in s.away,
        Reason.RUNTIME_UNAVAILABLE,
        "The runtime {asked} was asked for and can take no run at present.",
        passes=True,
    ),
    Refusal(
        "tool_transaction_runtime_away",
        lambda s: s.bound in s.away,
        Reason.RUNTIME_UNAVAILABLE,
        "A tool call is open under {bound}, which can take no run at present.",
        passes=True,
    ),
    Refusal(
        "every_runtime_away",
        lambda s: all(runtime in s.away for runtime in s.runtimes_on),
        Reason.RUNTIME_UNAVAILABLE,
        "No runtime can take the run at present.",
        passes=True,
    ),
    Refusal(
        "requested_runtime_failing",
        lambda s: s.asked in s.failing,
        Reason.RUNTIME_UNAVAILABLE,
        "The runtime {asked} was asked for and fails at present.",
        passes=True,
    ),
    Refusal(
        "tool_transaction_runtime_failing",
        lambda s: s.bound in s.failing,
        Reason.RUNTIME_UNAVAILABLE,
        "A tool call is open under {bound}, which fails at present.",
        passes=True,
    ),
    Refusal(
        "every_runtime_failing",
        lambda s: not s.usable,
        Reason.RUNTIME_UNAVAILABLE,
        "Every runtime that could take the run fails or is away at present.",
        passes=True,
    ),
)
"""What is refused; the first that holds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Picks a runtime when it applies; a later one in the table overrules an earlier one.

    `when` sees the snapshot and what has been picked so far; `{picked}` in texts stands for that.
    """

    name: str
    effect: Effect
    when: Callable[[Snapshot, str], bool]
    pick: Callable[[Snapshot], str]
    reason: str


def _by_kind(s: Snapshot) -> str:
    return OPENCLAW if s.kind == CHAT else LIGHT


def _what_is_on(s: Snapshot) -> str:
    return _by_kind(s) if s.is_on(_by_kind(s)) else s.runtimes_on[0]


RULES = (
    Rule(
        "chat_prefers_openclaw",
        Effect.PREFER,
        lambda s, _: s.kind == CHAT,
        _by_kind,
        "Conversations gain most from the fuller runtime.",
    ),
    Rule(
        "tasks_prefer_light",
        Effect.PREFER,
        lambda s, _: s.kind != CHAT,
        _by_kind,
        "No one waits for a task; the light runtime does it at the least cost.",
    ),
    Rule(
        "tenant_prefers",
        Effect.PREFER,
        lambda s, _: s.kind == CHAT and bool(s.tenant.preferred_runtime),
        lambda s: s.tenant.preferred_runtime,
        "The tenant's settings name a runtime for conversations.",
    ),
    Rule(
        "{picked}_is_off",
        Effect.FALL_BACK,
        lambda s, picked: not s.is_on(picked),
        _what_is_on,
        "Preferred is {picked}, which is off in this deployment: one that is on takes it.",
    ),
    Rule(
        "session_is_sticky",
        Effect.PREFER,
        lambda s, _: s.sticky and s.is_on(s.session_runtime),
        lambda s: s.session_runtime,
        "The session used this runtime a short while ago, and a switch costs context.",
    ),
    Rule(
        "{picked}_is_away",
        Effect.FALL_BACK,
        lambda s, picked: picked in s.away and not s.asked and not s.bound,
        lambda s: s.usable[0],
        "It would be {picked}, which can take no run at present: one that can takes it.",
    ),
    Rule(
        "{picked}_is_failing",
        Effect.FALL_BACK,
        lambda s, picked: picked in s.failing and not s.asked and not s.bound,
        lambda s: s.usable[0],
        "It would be {picked}, which fails at present: one that works takes it.",
    ),
    Rule(
        "client_asks",
        Effect.REQUIRE,
        lambda s, _: bool(s.asked),
        lambda s: s.asked,
        "The client asked for this runtime.",
    ),
    Rule(
        "tool_transaction_open",
        Effect.FORBID,
        lambda s, _: bool(s.bound),
        lambda s: s.bound,
        "A tool call of the session is open, so that the runtime must stay.",
    ),
)
"""What picks the runtime; the last that applies decides."""


def decide(s: Snapshot) -> Decision:
    """Decide how a run is to be executed.

    Raises RetinueError(RUNTIME_UNAVAILABLE or TOOL_TRANSACTION_OPEN), with the refusing rule as metadata; one that
    passes with the seconds until it may.
    """
    for refusal in REFUSALS:
        if refusal.when(s):
            message = refusal.reason.format(asked=s.asked, bound=s.bound)
            waits = [s.wait_s(runtime) for runtime in s.insisted]
            raise RetinueError(
                refusal.error,
                message,
                retry_after_s=min(waits) if refusal.passes else None,
                rule=refusal.name,
                runtime=",".join(s.insisted),
            )
    limits, fired = _limits(s)
    picked, picking = "", []
    for rule in RULES:
        if rule.when(s, picked):
            name, reason = rule.name.format(picked=picked), rule.reason.format(picked=picked)
            picking.append(Fired(name, rule.effect, reason))
            picked = rule.pick(s)
    isolation = SHARED
    if picked in HAS_CELLS and s.tenant.plan in s.cell_plans:
        isolation = CELL
        fired.append(Fired("plan_gives_cell", Effect.REQUIRE, f"The plan {s.tenant.plan} shares no runtime process."))
    switches = bool(s.session_runtime) and picked != s.session_runtime
    return Decision(picked, s.tenant.model, isolation, switches, limits, (*fired, *picking))


def _limits(s: Snapshot) -> tuple[Limits, list[Fired]]:
    """Set the limits; what a tenant has of its own is told."""
    tenant, defaults, fired = s.tenant, s.defaults, []
    if tenant.concurrent_run_count:
        fired.append(Fired("tenant_limits_runs", Effect.LIMIT, "The tenant's settings say how many runs go at once."))
    if tenant.weight:
        fired.append(Fired("tenant_has_weight", Effect.LIMIT, "The tenant's settings give its share in the fair ring."))
    limits = Limits(
        concurrent_run_count=tenant.concurrent_run_count or defaults.concurrent_run_count,
        attempt_count=defaults.attempt_count,
        run_time_s=defaults.run_time_s,
        output_size_bytes=defaults.output_size_bytes,
        weight=tenant.weight or USUAL_WEIGHT,
    )
    return limits, fired
