"""What an operator says about runtimes: whom they are preferred for, how far a rollout has come, what is too much load.

A tenant is in a rollout or not by a hash of both names: whoever is in at some percentage is in at every higher one, and
no process needs to remember it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from retinue_policy.domain.snapshot import Load
from retinue_policy.domain.tools.wildcards import STAR, name_matches

SHARE_SIZE_BYTES = 6
"""Of a digest: a tenant's share is told apart to a 3,000,000,000,000th of a percent, and is exact as a float."""

SHARES = 1 << 8 * SHARE_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Names:
    """Names and globs, in which `*` stands for any characters; all names if there are none.

    Whatever can be looked up at once is kept apart: a decision walks `globs` alone, each with what stands before its
    first star and behind its last, by which most are told not to match.
    """

    exact: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    globs: tuple[tuple[str, str, str], ...] = ()

    def hold(self, name: str) -> bool:
        """Whether a name is one of them."""
        if not (self.exact or self.prefixes or self.suffixes or self.globs):
            return True
        if name in self.exact or name.startswith(self.prefixes) or name.endswith(self.suffixes):
            return True
        return any(
            name.startswith(head) and name.endswith(tail) and name_matches(glob, name)
            for head, tail, glob in self.globs
        )


def names_of(entries: Iterable[str]) -> Names:
    """Sort entries by how they are looked up."""
    exact, prefixes, suffixes, globs = set(), [], [], []
    for entry in entries:
        head, star, tail = entry.partition(STAR)
        if not star:
            exact.add(entry)
        elif not tail:
            prefixes.append(head)
        elif not head and STAR not in tail:
            suffixes.append(tail)
        else:
            globs.append((head, entry.rpartition(STAR)[2], entry))
    return Names(frozenset(exact), tuple(prefixes), tuple(suffixes), tuple(globs))


@dataclass(frozen=True, slots=True)
class Runs:
    """Which runs an entry is for: those of whom all lists speak."""

    tenants: Names = Names()
    plans: Names = Names()
    kinds: Names = Names()

    def hold(self, tenant_id: str, plan: str, kind: str) -> bool:
        """Whether a run is one of them."""
        return self.kinds.hold(kind) and self.plans.hold(plan) and self.tenants.hold(tenant_id)


@dataclass(frozen=True, slots=True)
class Preference:
    """A runtime that an operator prefers for some runs; `number` is its place in the file, from 1."""

    number: int
    runtime: str
    runs: Runs = Runs()


class Stage(StrEnum):
    """How a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Rollout:
    """Brings a runtime to a share of the tenants, of 0 to 100 percent."""

    name: str
    runtime: str
    percent: float
    stage: Stage = Stage.RUNNING
    runs: Runs = Runs()

    def takes(self, tenant_id: str) -> bool:
        """Whether a tenant is in."""
        return share_of(self.name, tenant_id) < self.percent


def share_of(rollout: str, tenant_id: str) -> float:
    """Where a tenant stands in a rollout, from 0 to below 100: at any higher percentage it is in."""
    digest = hashlib.sha256(f"{rollout}\n{tenant_id}".encode()).digest()
    return int.from_bytes(digest[:SHARE_SIZE_BYTES]) / SHARES * 100


@dataclass(frozen=True, slots=True)
class RuntimeRules:
    """All that an operator says about runtimes, named by what is said. Of entries that are for a run, the last holds.

    Without `sticky_window_s`, the window that a snapshot has holds.
    """

    preferences: tuple[Preference, ...] = ()
    rollouts: tuple[Rollout, ...] = ()
    sticky_window_s: float | None = None
    busy_share_max: float = 1.0
    waiting_max: int = 32
    name: str = ""

    def crowds(self, load: Load) -> bool:
        """Whether a runtime with this load has no slot to give and more runs waiting than it should."""
        full = load.slot_count > 0 and load.busy_count >= self.busy_share_max * load.slot_count
        return full and load.waiting_count > self.waiting_max
