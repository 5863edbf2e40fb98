"""What the proxy allowed and refused, from its access log into the audit."""

from collections import OrderedDict
from typing import Protocol

import msgspec
import structlog
from retinue_kit import metrics

FORGOTTEN_MAX = 1024
"""Boxes that have ended whose last lines are still expected; a line comes within a second."""

ALLOWED = "allowed"
REFUSED = "refused"
FAILED = "failed"
"""Effects: it was passed on; it may not be reached; it may, and could not."""

_REFUSALS = frozenset({"direct_response", "no_healthy_upstream", "route_not_found", "cluster_not_found"})
_PASSED = frozenset({"via_upstream", "upstream_reset_after_response_started"})

decisions = metrics.counter("egress_decisions", "Requests and tunnels of boxes, by what became of them.", ["effect"])

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Record(Protocol):
    """Writes a decision down. `audit.Audit.record` is one."""

    def __call__(self, kind: str, /, **facts: str | int) -> None:
        """Write it; never raises."""
        ...


class Entry(msgspec.Struct):
    """A line of the access log; see `envoy_config.LOG_FIELDS`. Envoy writes null for what it does not know."""

    box: str
    method: str | None = None
    authority: str | None = None
    status: int | None = None
    detail: str | None = None
    flags: str | None = None
    sent_bytes: int | None = None
    received_bytes: int | None = None
    duration_ms: int | None = None
    address: str | None = None
    route: str | None = None


def effect(entry: Entry) -> str:
    """Say what became of a request or tunnel."""
    detail = (entry.detail or "").partition("{")[0]
    if entry.route == REFUSED or detail in _REFUSALS:
        return REFUSED
    # A tunnel that stood has its answer, however it ended.
    if detail in _PASSED or (entry.method == "CONNECT" and entry.status == 200):
        return ALLOWED
    return FAILED if (entry.route or "").startswith(ALLOWED) else REFUSED


class Decisions:
    """Takes lines of the access log and writes them down as the boxes' and tenants' they are."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._known: dict[str, tuple[str, str]] = {}
        self._forgotten: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def know(self, key: str, name: str, tenant_id: str) -> None:
        """Note whose a socket is."""
        self._known[key] = name, tenant_id

    def forget(self, key: str) -> None:
        """Note that it is closed; lines of its last moments are still known as its."""
        whose = self._known.pop(key, None)
        if whose is not None:
            self._forgotten[key] = whose
            while len(self._forgotten) > FORGOTTEN_MAX:
                self._forgotten.popitem(last=False)

    def take(self, line: bytes) -> None:
        """Write a line down. One that is none is logged."""
        try:
            entry = msgspec.json.decode(line, type=Entry)
        except msgspec.MsgspecError:
            log.warning("envoy wrote what is no entry of its log", detail=line[:200].decode("utf-8", "replace"))
            return
        name, tenant_id = self._known.get(entry.box) or self._forgotten.get(entry.box) or ("", "")
        what = effect(entry)
        decisions.labels(what).inc()
        self._record(
            "egress",
            tenant_id=tenant_id,
            box=name,
            host=entry.authority or "",
            effect=what,
            method=entry.method or "",
            status=entry.status or 0,
            address=entry.address or "",
            outcome=entry.detail or "",
            duration_ms=entry.duration_ms or 0,
            sent_size_bytes=entry.sent_bytes or 0,
            received_size_bytes=entry.received_bytes or 0,
        )
