"""The rules that pick the runtime, as a table; what is refused is another (refusals.py).

`decide` walks both over a snapshot and what the operator prefers. The tables can be read, tested by row, and replayed
on snapshots of the past.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from retinue_policy.domain import refusals
from retinue_policy.domain.preferences import Preference, Rollout, RuntimeRules, Stage
from retinue_policy.domain.snapshot import CHAT, LIGHT, OPENCLAW, Snapshot

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


class Case:
    """A snapshot as the operator's rules see it."""

    def __init__(self, s: Snapshot, rules: RuntimeRules) -> None:
        self.s = s
        self._rules = rules
        tenant_id, plan, kind = s.tenant_id, s.tenant.plan, s.kind
        found = (each for each in reversed(rules.preferences) if each.runs.hold(tenant_id, plan, kind))
        self.preference: Preference | None = next(found, None)
        rollouts = [each for each in reversed(rules.rollouts) if each.runs.hold(tenant_id, plan, kind)]
        self.rollout: Rollout | None = next(filter(self._is_taken_by, rollouts), None)
        self._rolled_back: Rollout | None = next(filter(self._is_left, rollouts), None)

    def _is_taken_by(self, rollout: Rollout) -> bool:
        """Whether a rollout gives the run its runtime; one that rests only where the session has it already."""
        if rollout.stage is Stage.PAUSED and self.s.session_runtime != rollout.runtime:
            return False
        return rollout.stage is not Stage.ROLLED_BACK and rollout.takes(self.s.tenant_id)

    def _is_left(self, rollout: Rollout) -> bool:
        """Whether a rollout that is taken back had the runtime that the session has."""
        return rollout.stage is Stage.ROLLED_BACK and rollout.runtime == self.s.session_runtime

    @property
    def sticky(self) -> bool:
        """Whether the session used its runtime so recently that it would rather keep it, and can."""
        own, age = self._rules.sticky_window_s, self.s.session_runtime_age_s
        window_s = self.s.sticky_window_s if own is None else own
        return self.s.is_on(self.s.session_runtime) and age is not None and age <= window_s

    def leaves(self, picked: str) -> bool:
        """Whether the session would keep a runtime that was rolled back, where another is picked. Whom the rollout had
        reached does not count: its percentage may have been lowered before."""
        return self._rolled_back is not None and picked != self.s.session_runtime and not self.s.bound

    @property
    def chooses(self) -> bool:
        """Whether the runtime is ours to choose: nobody asked for one, and the run has called no tools yet."""
        return not self.s.asked and not self.s.bound

    def is_crowded(self, runtime: str) -> bool:
        """Whether a runtime has more to do than it should."""
        load = self.s.load.get(runtime)
        return load is not None and self._rules.crowds(load)

    @property
    def roomy(self) -> list[str]:
        """The usable runtimes that are not crowded, in the operator's order."""
        return [runtime for runtime in self.s.usable if not self.is_crowded(runtime)]

    @property
    def stand_in(self) -> str:
        """What takes a run where its own runtime cannot; only where one is usable."""
        return (self.roomy or self.s.usable)[0]

    def words(self, picked: str) -> dict[str, object]:
        """What `{…}` in names and reasons stands for."""
        return {
            "picked": picked,
            "session": self.s.session_runtime,
            "preference": self.preference.number if self.preference else 0,
            "rollout": self.rollout.name if self.rollout else "",
            "rolled_back": self._rolled_back.name if self._rolled_back else "",
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """Picks a runtime when it applies; a later one in the table overrules an earlier one.

    `when` and `pick` see the case and what has been picked so far; texts may hold `Case.words`.
    """

    name: str
    effect: Effect
    when: Callable[[Case, str], bool]
    pick: Callable[[Case, str], str]
    reason: str


def _by_kind(c: Case, _: str) -> str:
    return OPENCLAW if c.s.kind == CHAT else LIGHT


def _what_is_on(c: Case, picked: str) -> str:
    usual = _by_kind(c, picked)
    return usual if c.s.is_on(usual) else c.s.runtimes_on[0]


def _stays(stage: Stage) -> Callable[[Case, str], bool]:
    return lambda c, _: c.rollout is not None and c.rollout.stage is stage


def _rolled_out(c: Case, picked: str) -> str:
    return c.rollout.runtime if c.rollout else picked


RULES = (
    Rule(
        "chat_prefers_openclaw",
        Effect.PREFER,
        lambda c, _: c.s.kind == CHAT,
        _by_kind,
        "Conversations gain most from the fuller runtime.",
    ),
    Rule(
        "tasks_prefer_light",
        Effect.PREFER,
        lambda c, _: c.s.kind != CHAT,
        _by_kind,
        "No one waits for a task; the light runtime does it at the least cost.",
    ),
    Rule(
        "operator_prefers",
        Effect.PREFER,
        lambda c, _: c.preference is not None,
        lambda c, picked: c.preference.runtime if c.preference else picked,
        "The operator's preference number {preference} is for runs like this one.",
    ),
    Rule(
        "tenant_prefers",
        Effect.PREFER,
        lambda c, _: c.s.kind == CHAT and bool(c.s.tenant.preferred_runtime),
        lambda c, _: c.s.tenant.preferred_runtime,
        "The tenant's settings name a runtime for conversations.",
    ),
    Rule(
        "rollout_{rollout}",
        Effect.PREFER,
        _stays(Stage.RUNNING),
        _rolled_out,
        "The rollout {rollout} has reached this tenant.",
    ),
    Rule(
        "rollout_{rollout}_is_paused",
        Effect.PREFER,
        _stays(Stage.PAUSED),
        _rolled_out,
        "The rollout {rollout} rests: it had reached this tenant, and a session that has its runtime keeps it.",
    ),
    Rule(
        "{picked}_is_off",
        Effect.FALL_BACK,
        lambda c, picked: not c.s.is_on(picked),
        _what_is_on,
        "Preferred is {picked}, which is off in this deployment: one that is on takes it.",
    ),
    Rule(
        "rollout_{rolled_back}_is_rolled_back",
        Effect.FORBID,
        lambda c, picked: c.sticky and c.leaves(picked),
        lambda _, picked: picked,
        "The rollout {rolled_back} was rolled back: the session does not keep {session}, though it used it lately.",
    ),
    Rule(
        "session_is_sticky",
        Effect.PREFER,
        lambda c, picked: c.sticky and not c.leaves(picked),
        lambda c, _: c.s.session_runtime,
        "The session used this runtime a short while ago, and a switch costs context.",
    ),
    Rule(
        "{picked}_is_away",
        Effect.FALL_BACK,
        lambda c, picked: picked in c.s.away and c.chooses,
        lambda c, _: c.stand_in,
        "It would be {picked}, which can take no run at present: one that can takes it.",
    ),
    Rule(
        "{picked}_is_failing",
        Effect.FALL_BACK,
        lambda c, picked: picked in c.s.failing and c.chooses,
        lambda c, _: c.stand_in,
        "It would be {picked}, which fails at present: one that works takes it.",
    ),
    Rule(
        "{picked}_is_crowded",
        Effect.FALL_BACK,
        lambda c, picked: c.chooses and c.is_crowded(picked) and bool(c.roomy),
        lambda c, _: c.stand_in,
        "It would be {picked}, which has no room and many runs waiting: one that has room takes it.",
    ),
    Rule(
        "client_asks",
        Effect.REQUIRE,
        lambda c, _: bool(c.s.asked),
        lambda c, _: c.s.asked,
        "The client asked for this runtime.",
    ),
    Rule(
        "tool_transaction_open",
        Effect.FORBID,
        lambda c, _: bool(c.s.bound),
        lambda c, _: c.s.bound,
        "The run has called tools under this runtime, so that it must stay.",
    ),
)
"""What picks the runtime; the last that applies decides."""

NO_PREFERENCES = RuntimeRules()


def decide(s: Snapshot, rules: RuntimeRules = NO_PREFERENCES) -> Decision:
    """Decide how a run is to be executed.

    Raises RetinueError(RUNTIME_UNAVAILABLE or TOOL_TRANSACTION_OPEN), with the refusing rule as metadata; one that
    passes with the seconds until it may.
    """
    refusals.check(s)
    limits, fired = _limits(s)
    case, picked, picking = Case(s, rules), "", []
    for rule in RULES:
        if rule.when(case, picked):
            words = case.words(picked)
            picking.append(Fired(rule.name.format_map(words), rule.effect, rule.reason.format_map(words)))
            picked = rule.pick(case, picked)
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
