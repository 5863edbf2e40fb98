"""Deciding once more what was decided before, by other rules: what would differ is known before they are in force."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
from retinue_kit.errors import RetinueError

from retinue_policy.domain import rules as table
from retinue_policy.domain.preferences import RuntimeRules
from retinue_policy.operations import snapshots
from retinue_policy.operations.rulebook import BadRulesError

RULES = "rules_toml"
"""The field of the request that holds the rules."""

AT_ONCE = 10
"""Decisions that are replayed before others get their turn: about a millisecond, which a decision may wait."""

PARSED_MAX = 4
"""Rules that are kept parsed: whoever replays asks page after page with the same."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A decision as it was stored with a run."""

    tenant_id: str
    run_id: str
    decision: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """What would differ; see retinue.policy.v1.DecisionDifference."""

    tenant_id: str
    run_id: str
    former_runtime: str
    runtime: str
    former_rule: str
    rule: str
    reason: str
    isolation: str


@dataclass(slots=True)
class Replayed:
    """What became of a page of decisions."""

    differences: list[Difference] = field(default_factory=list)
    same_count: int = 0
    skipped_count: int = 0


class _Rule(msgspec.Struct):
    rule: str = ""


class _Decision(msgspec.Struct):
    runtime: str = ""
    isolation: str = ""
    rules: list[_Rule] = []


@dataclass(frozen=True, slots=True)
class _Outcome:
    runtime: str
    isolation: str
    rule: str
    reason: str


class Replaying:
    """Replays decisions by rules that `parse` reads; it raises BadRulesError."""

    def __init__(self, parse: Callable[[str], RuntimeRules]) -> None:
        self._parse = lru_cache(maxsize=PARSED_MAX)(parse)

    async def replay(self, rules_toml: str, decisions: Iterable[Stored]) -> Replayed:
        """Decide anew, and say what differs, in the order given. Raises RetinueError(FIELD_INVALID)."""
        try:
            # A large file takes a while to read, and a decision that a run waits for does not wait for that.
            rules = await asyncio.to_thread(self._parse, rules_toml)
        except BadRulesError as error:
            raise RetinueError.field(RULES, str(error)) from None
        replayed = Replayed()
        for number, stored in enumerate(decisions):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            _replay(replayed, stored, rules)
        return replayed


def _replay(replayed: Replayed, stored: Stored, rules: RuntimeRules) -> None:
    former = _former(stored.decision)
    snapshot = snapshots.read(stored.decision.get("snapshot"), stored.tenant_id)
    if former is None or snapshot is None:
        replayed.skipped_count += 1
        return
    try:
        decision = table.decide(snapshot, rules)
        now = _Outcome(decision.runtime, decision.isolation, decision.rules[-1].rule, decision.rules[-1].reason)
    except RetinueError as error:
        now = _Outcome("", former.isolation, str(error.metadata["rule"]), error.message)
    if (now.runtime, now.isolation) == (former.runtime, former.isolation):
        replayed.same_count += 1
        return
    isolation = "" if now.isolation == former.isolation else f"{former.isolation} → {now.isolation}"
    replayed.differences.append(
        Difference(
            tenant_id=stored.tenant_id,
            run_id=stored.run_id,
            former_runtime=former.runtime,
            runtime=now.runtime,
            former_rule=former.rule,
            rule=now.rule,
            reason=now.reason,
            isolation=isolation,
        )
    )


def _former(decision: Mapping[str, Any]) -> _Outcome | None:
    """Read what was decided; None if it cannot be read."""
    try:
        found = msgspec.convert(decision, _Decision)
    except msgspec.ValidationError:
        return None
    rule = found.rules[-1].rule if found.rules else ""
    return _Outcome(found.runtime, found.isolation, rule, "")
