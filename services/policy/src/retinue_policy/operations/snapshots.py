"""Snapshots as they are stored with runs, so that other rules can be tried on them later.

The names are kept for good: what a newer release must write otherwise gets another VERSION, and is passed over by older
ones, and the other way round. There is nothing in it that anybody wrote, ids aside that settings hold.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from retinue_policy.domain.snapshot import Load, Snapshot, Tenant

VERSION = 1
"""Of the names and their meaning."""

DIGITS = 3
"""After the point, of seconds that nothing is decided by."""

Runtimes = Annotated[list[str], msgspec.Meta(min_length=1)]


class _Load(msgspec.Struct):
    """Counts are floats, as JSON's numbers are where the snapshot has been a Struct."""

    slots: float = 0
    busy: float = 0
    waiting: float = 0


class _Snapshot(msgspec.Struct):
    kind: str
    runtimes_on: Runtimes
    requested_runtime: str = ""
    session_runtime: str = ""
    session_runtime_age_s: float | None = None
    tool_transaction_open: bool = False
    sticky_window_s: float = 900.0
    plan: str = ""
    preferred_runtime: str = ""
    failing: dict[str, float] = {}
    away: dict[str, float] = {}
    load: dict[str, _Load] = {}
    cell_plans: list[str] = []


def written(s: Snapshot, rules: str) -> dict[str, Any]:
    """Write a snapshot, and the name of the rules that were in force; whose it is stands beside it."""
    return {
        "version": VERSION,
        "rules": rules,
        "kind": s.kind,
        "runtimes_on": list(s.runtimes_on),
        "requested_runtime": s.requested_runtime,
        "session_runtime": s.session_runtime,
        "session_runtime_age_s": s.session_runtime_age_s,
        "tool_transaction_open": s.tool_transaction_open,
        "sticky_window_s": s.sticky_window_s,
        "plan": s.tenant.plan,
        "preferred_runtime": s.tenant.preferred_runtime,
        "failing": {runtime: round(wait_s, DIGITS) for runtime, wait_s in s.failing.items()},
        "away": {runtime: round(wait_s, DIGITS) for runtime, wait_s in s.away.items()},
        "load": {
            runtime: {"slots": load.slot_count, "busy": load.busy_count, "waiting": load.waiting_count}
            for runtime, load in s.load.items()
        },
        "cell_plans": sorted(s.cell_plans),
    }


def read(stored: object, tenant_id: str) -> Snapshot | None:
    """Read a snapshot, of a tenant; None if it is missing, of another version, or none at all."""
    if not isinstance(stored, Mapping) or stored.get("version") != VERSION:
        return None
    try:
        found = msgspec.convert(stored, _Snapshot)
        load = {name: Load(int(one.slots), int(one.busy), int(one.waiting)) for name, one in found.load.items()}
    except (msgspec.ValidationError, ValueError, OverflowError):
        return None
    return Snapshot(
        kind=found.kind,
        runtimes_on=tuple(found.runtimes_on),
        requested_runtime=found.requested_runtime,
        session_runtime=found.session_runtime,
        session_runtime_age_s=found.session_runtime_age_s,
        tool_transaction_open=found.tool_transaction_open,
        sticky_window_s=found.sticky_window_s,
        tenant_id=tenant_id,
        tenant=Tenant(plan=found.plan, preferred_runtime=found.preferred_runtime),
        failing=found.failing,
        away=found.away,
        load=load,
        cell_plans=frozenset(found.cell_plans),
    )
