"""Rules for runtimes as an operator writes them, in TOML; docs/policy.md says what may stand there."""

import tomllib
from typing import Annotated, Literal

import msgspec

from retinue_policy.domain.preferences import Preference, Rollout, Runs, RuntimeRules, Stage, names_of
from retinue_policy.domain.snapshot import PLANS
from retinue_policy.operations.rulebook import BadRulesError

NAME = "runtimes.toml"

SIZE_MAX_BYTES = 1_000_000
"""As much as can be tried out; an entry takes some 100 bytes."""

PREFERENCES_MAX = 500
ROLLOUTS_MAX = 100
LIST_LENGTH_MAX = 5_000
"""Entries of one list: names are looked up at once, however many they are."""

GLOBS_MAX = 256
"""Entries with more than one star, or one in their middle, in the whole file: a decision walks them one by one, in some
microseconds each."""

STICKY_WINDOW_MAX_S = 30 * 86_400.0
WAITING_MAX = 1_000_000

Entry = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Entries = Annotated[list[Entry], msgspec.Meta(max_length=LIST_LENGTH_MAX)]
Runtime = Literal["openclaw", "light"]


class _Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenants: Entries = []
    plans: Entries = []
    kinds: Entries = []


class _Preference(_Runs, frozen=True, forbid_unknown_fields=True, kw_only=True):
    runtime: Runtime


class _Rollout(_Runs, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,31}$")]
    runtime: Runtime
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)]
    state: Stage = Stage.RUNNING


class _Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    busy_share_max: Annotated[float, msgspec.Meta(ge=0, le=1)] = RuntimeRules().busy_share_max
    waiting_max: Annotated[int, msgspec.Meta(ge=0, le=WAITING_MAX)] = RuntimeRules().waiting_max


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sticky_window_s: Annotated[float, msgspec.Meta(ge=0, le=STICKY_WINDOW_MAX_S)] | None = None
    prefer: Annotated[list[_Preference], msgspec.Meta(max_length=PREFERENCES_MAX)] = []
    rollout: Annotated[list[_Rollout], msgspec.Meta(max_length=ROLLOUTS_MAX)] = []
    load: _Load = _Load()


def parse(text: str, name: str = "") -> RuntimeRules:
    """Read rules, to be called by a name. Raises BadRulesError."""
    if len(text.encode(errors="replace")) > SIZE_MAX_BYTES:
        raise BadRulesError(f"{NAME}: more than {SIZE_MAX_BYTES} bytes")
    try:
        read = msgspec.convert(tomllib.loads(text), _File)
    except (ValueError, OverflowError, msgspec.ValidationError, RecursionError) as error:
        raise BadRulesError(f"{NAME}: {error}") from None
    rollouts = [
        Rollout(each.name, each.runtime, each.percent, each.state, _runs(f"rollout {each.name}", each))
        for each in read.rollout
    ]
    rules = RuntimeRules(
        preferences=tuple(
            Preference(number, each.runtime, _runs(f"prefer number {number}", each))
            for number, each in enumerate(read.prefer, 1)
        ),
        rollouts=tuple(rollouts),
        sticky_window_s=read.sticky_window_s,
        busy_share_max=read.load.busy_share_max,
        waiting_max=read.load.waiting_max,
        name=name,
    )
    _check(rules)
    return rules


def _check(rules: RuntimeRules) -> None:
    names = [each.name for each in rules.rollouts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadRulesError(f"{NAME}: there are two rollouts of the name {twice[0]!r}")
    parts = [*(each.runs for each in rules.preferences), *(each.runs for each in rules.rollouts)]
    if sum(len(names.globs) for runs in parts for names in (runs.tenants, runs.plans, runs.kinds)) > GLOBS_MAX:
        raise BadRulesError(f"{NAME}: more than {GLOBS_MAX} entries have a star elsewhere than at one end")


def _runs(where: str, read: _Runs) -> Runs:
    for entry in read.plans:
        if not any(names_of([entry]).hold(plan) for plan in PLANS):
            raise BadRulesError(f"{NAME}: {where}: plans: {entry!r} is none of {', '.join(PLANS)}")
    return Runs(names_of(read.tenants), names_of(read.plans), names_of(read.kinds))
