"""Whether the calls of a step may be made: what policy says of each, what a person has answered."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.tools import arguments
from retinue_runtime_adapter.tools.assembly import Tools
from retinue_runtime_adapter.tools.ledger import Entry
from retinue_runtime_adapter.tools.ports import SUMMARY_LENGTH_MAX, Call, Scope, Tool, Verdict

EXPIRE_S = 3600
"""Until silence is a denial, where policy does not say."""

NAMES_MAX = 50
"""Tools that a refusal lists."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Judged:
    """A planned call: it begins, and ends with its refusal if there is one; or a person is asked first."""

    entry: Entry
    refusal: str = ""
    question: Verdict | None = None


async def judge(tools: Tools, scope: Scope, offered: Sequence[Tool], entries: Sequence[Entry]) -> list[Judged]:
    """Judge planned calls, all at once. Whatever goes wrong is a refusal of the call."""
    by_name = {tool.name: tool for tool in offered}
    return list(await asyncio.gather(*(_judge(tools, scope, by_name, entry) for entry in entries)))


async def _judge(tools: Tools, scope: Scope, offered: dict[str, Tool], entry: Entry) -> Judged:
    if entry.refusal:
        return Judged(entry, entry.refusal)
    tool = offered.get(entry.tool)
    if tool is None:
        names = ", ".join(sorted(offered)[:NAMES_MAX]) or "none"
        return Judged(entry, f"There is no tool {entry.tool!r}. There are: {names}.")
    try:
        given = arguments.normalised(tool.parameters, arguments.read(entry.arguments))
    except arguments.ArgumentsError as error:
        return Judged(entry, str(error))
    if entry.decision == "deny":
        return Judged(entry, "A person was asked about this call, and has denied it.")
    if entry.decision == "expired":
        return Judged(entry, "A person was asked about this call and did not answer in time, so it may not be made.")
    call, approved = Call(entry.call_id, entry.tool, given, entry.approval_id), entry.decision == "allow"
    try:
        verdict = await tools.authority.authorize(scope, call, approved=approved)
    except RetinueError as error:
        log.warning("a tool call was not authorized", tool=entry.tool, reason=str(error.reason), detail=error.private)
        return Judged(entry, "Whether this call may be made could not be found out, so it was not. Try again later.")
    # What a person has allowed for this very call is not asked again.
    if verdict.effect == "allow" or (verdict.effect == "ask" and approved):
        return Judged(entry)
    if verdict.effect == "ask":
        return Judged(entry, question=verdict)
    return Judged(entry, f"This call is not allowed: {verdict.reason or 'policy denies it.'}")


def summary(entry: Entry, verdict: Verdict) -> str:
    """What a person is asked about, in one line."""
    text = verdict.summary or f"{entry.tool} {entry.arguments}"
    return " ".join(text.split())[:SUMMARY_LENGTH_MAX]
