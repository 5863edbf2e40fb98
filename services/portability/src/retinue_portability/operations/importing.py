"""Bringing a bundle back: a fresh conversation that goes on where it ends."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from retinue_kit import telemetry
from retinue_kit.errors import Reason, RetinueError

from retinue_portability.domain import losses, rendering
from retinue_portability.domain.losses import FieldFate
from retinue_portability.operations.checking import Checking
from retinue_portability.operations.ports import Fresh, Logs, Memory

LOG = "log"
"""What a loss report calls the target of an import."""

NAME_LENGTH_MAX = 200
CHANNEL_LENGTH_MAX = 64
"""Characters that the log takes of them."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import."""

    session_id: str
    digest: str
    fates: tuple[FieldFate, ...]


class Importing:
    """ImportBundle."""

    def __init__(self, checking: Checking, logs: Logs, memory: Memory) -> None:
        self._checking = checking
        self._logs = logs
        self._memory = memory

    async def bring(self, tenant_id: str, contact: str, data: bytes) -> Imported:
        """Begin a conversation with what a bundle holds, before its facts are remembered: what is refused with
        SESSION_BUSY has left nothing. Whatever fails afterwards can be repeated: both know what they have done.

        Raises BUNDLE_INVALID, SESSION_BUSY. A memory that has no room left is a loss, and no error.
        """
        with telemetry.span("portability.import", bytes=len(data)):
            opened = await self._checking.verify(tenant_id, data)
            content, digest = opened.bundle.content, opened.digest
            brought = await asyncio.to_thread(rendering.for_log, opened.bundle, contact)
            fates = brought.fates
            session_id = await self._logs.bring(
                Fresh(
                    tenant_id=tenant_id,
                    contact=contact,
                    digest=digest,
                    messages=brought.messages,
                    summary=brought.summary,
                    summary_message_count=content.summary.message_count,
                    losses=[fate.line() for fate in fates if fate.fate != losses.HELD],
                    profile=_profile(content.profile.profile_json),
                    display_name=content.profile.display_name[:NAME_LENGTH_MAX],
                    channel=content.profile.channel[:CHANNEL_LENGTH_MAX],
                )
            )
            # What concerns the whole tenant is there already, and is not of this contact.
            known = {fact.text for fact in await self._memory.facts(tenant_id, "")}
            facts = [fact for fact in content.facts if fact.text and fact.text not in known]
            try:
                await self._memory.remember(tenant_id, contact, facts)
            except RetinueError as error:
                if error.reason is not Reason.QUOTA_EXCEEDED:
                    raise
                log.info("facts of a bundle have no room", count=len(facts))
                fates = rendering.facts_lost(fates, "The memory has no room for them.")
            return Imported(session_id, digest, fates)


def _profile(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
