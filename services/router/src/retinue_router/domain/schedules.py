"""What is asked of a schedule, before it is one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from retinue_kit.errors import RetinueError

from retinue_router.domain.contacts import check_name
from retinue_router.domain.submission import CHAT, check_key, check_kind

SCHEDULE_ID = "sch"

SCHEDULES_MAX = 100
"""Schedules of a tenant. If each came every minute, two of a worker's slots would be busy with runs of a second."""

ACTIVE = "active"
PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A task that is to come again, as asked for."""

    tenant_id: str
    contact: str
    kind: str
    input: Mapping[str, object]
    cron: str
    time_zone: str
    principal: str = ""
    idempotency_key: str = ""

    def check(self) -> None:
        """Refuse what could not be executed; the expression is not looked at. Raises RetinueError(FIELD_INVALID)."""
        check_name(self.contact)
        if self.kind == CHAT:
            raise RetinueError.field("kind", "must be a task's, not chat")
        check_kind(self.kind)
        check_key(self.idempotency_key)

    def digest(self) -> bytes:
        """SHA-256 of what is asked, without the key and who asks: equal for equal intents."""
        asked = {
            "contact": self.contact,
            "kind": self.kind,
            "input": self.input,
            "cron": self.cron,
            "time_zone": self.time_zone,
        }
        text = json.dumps(asked, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()
