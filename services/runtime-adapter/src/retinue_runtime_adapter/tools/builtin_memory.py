"""Tools for what is remembered for good: facts of whom the agent speaks with, kept by the router."""

import re
from typing import Any

from retinue.router.v1 import memory_service_pb2 as pb
from retinue.router.v1.memory_service_pb2_grpc import MemoryServiceStub
from retinue_kit.client import Peer

from retinue_runtime_adapter.tools.builtin_files import BuiltIn, schema
from retinue_runtime_adapter.tools.ports import Call, Json, Progress, Result, Scope

FACTS_MAX = 20
"""Facts that one call remembers."""

TEXT_LENGTH_MAX = 2000
"""Characters of a fact, as the router has it."""

TITLE_LENGTH_MAX = 200
"""Characters of a note's title."""

NOTE_LENGTH_MAX = TEXT_LENGTH_MAX - TITLE_LENGTH_MAX - 2
"""Characters of a note, which is one fact together with its title."""

DOMAIN_LENGTH_MAX = 64
"""Characters of what a fact is about, as the router has it."""

QUERY_LENGTH_MAX = 1000
"""Characters of what is looked for, as the router has it."""

FOUND_MAX = 10
"""Facts that a search answers: twenty thousand characters at most."""

KINDS = ("preference", "profile", "event", "task", "note")

MEMORY_TIMEOUT_S = 10.0
"""For facts to be written or found: one transaction, and perhaps a model's vectors before it."""

_NO_DOMAIN = re.compile(r"[^\w-]+")

_FACT: Json = schema(
    ["text"],
    text={
        "type": "string",
        "minLength": 1,
        "maxLength": TEXT_LENGTH_MAX,
        "description": "The fact, in one sentence that can be understood by itself.",
    },
    domain={"type": "string", "maxLength": TITLE_LENGTH_MAX, "description": "What it is about, in a word: work, home."},
    kind={"type": "string", "enum": list(KINDS)},
    importance={"type": "integer", "minimum": 1, "maximum": 10, "description": "10 is never to be forgotten."},
)


def memory_tools(router: Peer) -> list[BuiltIn]:
    """Make them."""
    made = _Memory(router)
    return [
        BuiltIn(
            "memory_note",
            "Remember facts about whom you speak with for good, across all conversations.",
            schema(
                [],
                facts={"type": "array", "minItems": 1, "maxItems": FACTS_MAX, "items": _FACT},
                title={"type": "string", "maxLength": TITLE_LENGTH_MAX, "description": "Of a single note."},
                text={"type": "string", "maxLength": NOTE_LENGTH_MAX, "description": "A single note; else use facts."},
            ),
            made.remember,
            # A text is remembered once, however often it is told.
            idempotent=True,
        ),
        BuiltIn(
            "memory_search",
            "Look for what is remembered of whom you speak with, from all conversations; the best first.",
            schema(["query"], query={"type": "string", "minLength": 1, "maxLength": QUERY_LENGTH_MAX}),
            made.search,
            parallel=True,
            idempotent=True,
        ),
    ]


class _Memory:
    def __init__(self, router: Peer) -> None:
        self._peer = router
        self._stub: Any = MemoryServiceStub(router.channel)

    async def remember(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        wanted = _wanted(call.arguments)
        if not wanted:
            return Result(False, "There is nothing to remember: give facts, or the text of a note.")
        request = pb.RememberFactsRequest(
            tenant_id=scope.tenant_id, contact=scope.contact, run_id=scope.run_id, facts=wanted
        )
        await self._peer.call(self._stub.RememberFacts, request, timeout_s=MEMORY_TIMEOUT_S)
        return Result(True, "Remembered." if len(wanted) == 1 else f"Remembered {len(wanted)} facts.")

    async def search(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        query = call.arguments["query"]
        request = pb.SearchFactsRequest(
            tenant_id=scope.tenant_id, contact=scope.contact, query=query, page_size=FOUND_MAX
        )
        answer = await self._peer.call(self._stub.SearchFacts, request, timeout_s=MEMORY_TIMEOUT_S)
        return Result(True, "\n".join(_shown(one.fact) for one in answer.facts) or "Nothing like that is remembered.")


def _wanted(arguments: Json) -> list[pb.NewFact]:
    """Read the facts, and the note that stands for one."""
    facts = [
        pb.NewFact(
            text=fact["text"],
            domain=domain_of(fact.get("domain", "")),
            kind=fact.get("kind", ""),
            importance=fact.get("importance", 0),
        )
        for fact in arguments.get("facts", ())
        if fact["text"].strip()
    ]
    title, text = (" ".join(arguments.get(name, "").split()) for name in ("title", "text"))
    if title or text:
        facts.append(pb.NewFact(text=f"{title}: {text}" if title and text else title or text))
    return facts


def domain_of(text: str) -> str:
    """Write what a fact is about as one word, as the router wants it; models write several."""
    return _NO_DOMAIN.sub("-", text.lower()).strip("-")[:DOMAIN_LENGTH_MAX].rstrip("-")


def _shown(fact: pb.Fact) -> str:
    day = fact.create_time.ToDatetime().date().isoformat()
    return f"- {fact.text} ({fact.domain}, {fact.kind}, importance {fact.importance}, {day})"
