"""The tool ledger: how far each call of a run has come, as the run's checkpoint holds it.

    planned ─▶ started under a token ─▶ finished
       ▲                  │
       └─ idempotent ─────┴─▶ unknown          both only under another token

A start is recorded before the call is made, so what stands as started under another token may have been made by an
attempt that is gone. Pure: each function answers the entry as it is now, or raises LedgerError.
"""

from collections import OrderedDict
from typing import Literal

import msgspec

UNKNOWN = (
    "The outcome of this call is unknown: it was begun, and what made it was lost before it could say how it ended. "
    "It may have been done, in part or whole. Find out before you do it again."
)
"""What the model is told of a call whose end nobody knows."""

BEGUN_MAX = 16_384
"""Calls that a process remembers to have begun, the latest ones: more than begin within a lease's time, about 3 MB."""

State = Literal["planned", "started", "finished", "unknown"]


class LedgerError(Exception):
    """A step that the ledger does not allow: a bug of whoever asked for it."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a model's step."""

    call_id: str
    tool: str
    arguments: str
    """JSON, as the model gave it."""
    state: State = "planned"
    token: int = 0
    """Under which it was started."""
    refusal: str = ""
    """Why it is not made; it ends with this text, and nothing is called."""
    decision: str = ""
    """A person's answer, if one was asked: "allow", "deny" or "expired"."""
    approval_id: str = ""
    """What it was asked as."""
    ok: bool = False
    result: str = ""
    """What the model is told, once it is over."""

    @property
    def over(self) -> bool:
        """Whether nothing becomes of it any more."""
        return self.state in ("finished", "unknown")

    def lost(self, token: int) -> bool:
        """Whether an attempt of another token has started it and did not say how it ended."""
        return self.state == "started" and self.token != token


def decided(entry: Entry, decision: str, approval_id: str = "") -> Entry:
    """Note a person's answer; the first one counts."""
    if entry.decision or not decision:
        return entry
    found = "allow" if decision in ("allow_once", "allow_always") else decision
    answer = found if found in ("allow", "expired") else "deny"
    return msgspec.structs.replace(entry, decision=answer, approval_id=approval_id)


def started(entry: Entry, token: int, refusal: str = "") -> Entry:
    """Begin a call that is planned; with a refusal, one that ends without being made."""
    if entry.state != "planned":
        raise LedgerError(f"a call that is {entry.state} cannot be started")
    return msgspec.structs.replace(entry, state="started", token=token, refusal=refusal)


def finished(entry: Entry, token: int, *, ok: bool, result: str) -> Entry:
    """Record the end of a call that this attempt has started."""
    if entry.state != "started" or entry.token != token:
        raise LedgerError(f"a call that is {entry.state} under {entry.token} cannot be finished under {token}")
    return msgspec.structs.replace(entry, state="finished", ok=ok, result=result)


def taken_over(entry: Entry, token: int, *, idempotent: bool) -> Entry:
    """Go on with a call that another attempt has started: one that may be made twice is planned again, one that was
    refused was never made, and of any other the outcome is unknown.
    """
    if not entry.lost(token):
        raise LedgerError(f"a call that is {entry.state} under {entry.token} cannot be taken over under {token}")
    if entry.refusal:
        return msgspec.structs.replace(entry, state="finished", ok=False, result=entry.refusal)
    if idempotent:
        return msgspec.structs.replace(entry, state="planned", token=0)
    return msgspec.structs.replace(entry, state="unknown", ok=False, result=UNKNOWN)


def doubted(entry: Entry) -> Entry:
    """Give up a call that was begun under this very token already: whoever asks again does not know how it ended."""
    if entry.state != "started":
        raise LedgerError(f"a call that is {entry.state} cannot be doubted")
    return msgspec.structs.replace(entry, state="unknown", ok=False, result=UNKNOWN)


class Begun:
    """Calls that this process has begun, so that a request that comes twice makes none of them twice."""

    def __init__(self, calls_max: int = BEGUN_MAX) -> None:
        self._calls: OrderedDict[tuple[str, str, int, str], None] = OrderedDict()
        self._calls_max = calls_max

    def first(self, tenant_id: str, run_id: str, entry: Entry) -> bool:
        """Remember a call; False if it was begun before, under the same token."""
        key = (tenant_id, run_id, entry.token, entry.call_id)
        known = key in self._calls
        self._calls[key] = None
        if len(self._calls) > self._calls_max:
            self._calls.popitem(last=False)
        return not known
