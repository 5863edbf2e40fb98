"""The router's log and memory, the directory, and models behind the runtime-adapter."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
from google.protobuf import struct_pb2
from retinue.directory.v1 import directory_service_pb2 as directory_pb
from retinue.directory.v1 import directory_service_pb2_grpc as directory_grpc
from retinue.router.v1 import context_service_pb2 as context_pb
from retinue.router.v1 import context_service_pb2_grpc as context_grpc
from retinue.router.v1 import memory_service_pb2 as memory_pb
from retinue.router.v1 import memory_service_pb2_grpc as memory_grpc
from retinue.router.v1 import run_pb2
from retinue.runtime_adapter.v1 import model_service_pb2 as model_pb
from retinue.runtime_adapter.v1 import model_service_pb2_grpc as model_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue_kit.client import Peer

from retinue_portability.domain.content import START, Cursor, Fact, Message, Settings, cursor_of
from retinue_portability.domain.context import ROLES, Event
from retinue_portability.operations.ports import Agent, Fresh, Logged, Session

READ_TIMEOUT_S = 10.0
"""For a session's whole log: some megabytes from the router's database."""

BRING_TIMEOUT_S = 10.0
"""For writing thousands of messages in one transaction."""

TIMEOUT_S = 3.0
"""For what is one look-up at its owner."""

EVENTS_SIZE_MAX_BYTES = 16 * 1024 * 1024
"""Events of a session that are kept, the newest: far more than any model reads. The last summary is always kept."""

FACTS_MAX = 1000
"""Facts of one contact, and as many of a tenant: all that the memory keeps, in one page."""

REMEMBER_FACTS_MAX = 100
"""What the contract lets one call remember."""

_INTEGER_MAX = 2**53
"""Up to here a double holds every integer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Data(msgspec.Struct):
    message_id: str = ""
    text: str = ""
    call_id: str = ""
    tool: str = ""
    arguments: dict[str, Any] | None = None
    ok: bool = False
    result: Any = ""
    summary: str = ""
    through: str = ""
    method: str = ""
    message_count: int = 0


class _Line(msgspec.Struct):
    data: _Data


_lines = msgspec.json.Decoder(_Line)
_texts = msgspec.json.Encoder()


def event_of(event: run_pb2.Event) -> Event | None:
    """Read an event; None if it makes no sense."""
    cursor = cursor_of(event.cursor)
    try:
        data = _lines.decode(event.json).data
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if cursor is None:
        return None
    return Event(
        cursor=cursor,
        type=event.type,
        session_id=event.session_id,
        run_id=event.run_id,
        message_id=data.message_id,
        text=data.text,
        call_id=data.call_id,
        tool=data.tool,
        arguments=data.arguments or {},
        ok=data.ok,
        result=data.result if isinstance(data.result, str) else _texts.encode(data.result).decode(),
        summary=data.summary,
        through=cursor_of(data.through) if data.through else None,
        method=data.method,
        message_count=data.message_count,
    )


def plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Read a Struct as JSON would: whole numbers as integers."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        whole = math.isfinite(number) and number.is_integer() and abs(number) < _INTEGER_MAX
        return int(number) if whole else number if math.isfinite(number) else None
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def struct_of(value: Mapping[str, Any]) -> struct_pb2.Struct:
    """Write a Struct."""
    struct = struct_pb2.Struct()
    struct.update(dict(value))
    return struct


class _Newest:
    """The newest events within a bound, and how much was passed over."""

    def __init__(self) -> None:
        self._kept: deque[run_pb2.Event] = deque()
        self._compacted: run_pb2.Event | None = None
        self._size = 0
        self.passed_over_count = 0
        self.passed_over_through: Cursor | None = None

    def add(self, event: run_pb2.Event) -> None:
        """Keep an event, and let go of the oldest ones that have no room any more."""
        if event.type == "context.compacted":
            self._compacted = event
            return
        self._kept.append(event)
        self._size += len(event.json)
        while self._size > EVENTS_SIZE_MAX_BYTES and len(self._kept) > 1:
            oldest = self._kept.popleft()
            self._size -= len(oldest.json)
            if oldest.type in ROLES:
                self.passed_over_count += 1
                self.passed_over_through = cursor_of(oldest.cursor)

    def events(self) -> list[run_pb2.Event]:
        """List what was kept."""
        return [*self._kept, *([self._compacted] if self._compacted is not None else [])]


class RouterLogs:
    """Implements ports.Logs."""

    def __init__(self, router: Peer) -> None:
        self._peer = router
        self._stub: Any = context_grpc.ContextServiceStub(router.channel)

    async def read(self, session: Session) -> Logged:
        request = context_pb.ReadContextRequest(
            tenant_id=session.tenant_id,
            contact=session.contact,
            session_id=session.session_id,
            through_cursor=session.through_cursor,
        )
        header, newest = context_pb.ContextHeader(), _Newest()
        async for part in self._peer.stream(self._stub.ReadContext, request, timeout_s=READ_TIMEOUT_S):
            if part.HasField("header"):
                header = part.header
            for event in part.events:
                newest.add(event)
        found = newest.events()
        events = [event for event in map(event_of, found) if event is not None]
        if len(events) < len(found):
            log.warning("events that make no sense", count=len(found) - len(events), session_id=header.session_id)
        return Logged(
            session_id=header.session_id,
            display_name=header.display_name,
            channel=header.channel,
            profile=plain(header.profile),
            through=cursor_of(header.through_cursor) or START,
            events=events,
            unreadable_count=len(found) - len(events),
            passed_over_count=newest.passed_over_count,
            passed_over_through=newest.passed_over_through,
        )

    async def bring(self, fresh: Fresh) -> str:
        request = context_pb.ImportContextRequest(
            tenant_id=fresh.tenant_id,
            contact=fresh.contact,
            digest=fresh.digest,
            messages=[context_pb.ImportedMessage(role=one.role, text=one.text) for one in fresh.messages],
            summary=fresh.summary,
            summary_message_count=fresh.summary_message_count,
            losses=fresh.losses,
            profile=struct_of(fresh.profile),
            display_name=fresh.display_name,
            channel=fresh.channel,
        )
        answer = await self._peer.call(self._stub.ImportContext, request, timeout_s=BRING_TIMEOUT_S)
        return str(answer.session_id)


class RouterMemory:
    """Implements ports.Memory."""

    def __init__(self, router: Peer) -> None:
        self._peer = router
        self._stub: Any = memory_grpc.MemoryServiceStub(router.channel)

    async def facts(self, tenant_id: str, contact: str) -> list[Fact]:
        request = memory_pb.ListFactsRequest(tenant_id=tenant_id, contact=contact, page_size=FACTS_MAX)
        found = (await self._peer.call(self._stub.ListFacts, request, timeout_s=TIMEOUT_S)).facts
        return [Fact(one.fact_id, one.domain, one.kind, one.importance, one.text) for one in found]

    async def remember(self, tenant_id: str, contact: str, facts: Sequence[Fact]) -> None:
        for start in range(0, len(facts), REMEMBER_FACTS_MAX):
            some = [
                memory_pb.NewFact(domain=fact.domain, kind=fact.kind, importance=fact.importance, text=fact.text)
                for fact in facts[start : start + REMEMBER_FACTS_MAX]
            ]
            request = memory_pb.RememberFactsRequest(tenant_id=tenant_id, contact=contact, facts=some)
            await self._peer.call(self._stub.RememberFacts, request, timeout_s=TIMEOUT_S)


class DirectoryAgents:
    """Implements ports.Agents."""

    def __init__(self, directory: Peer) -> None:
        self._peer = directory
        self._stub: Any = directory_grpc.DirectoryServiceStub(directory.channel)

    async def agent(self, tenant_id: str) -> Agent:
        request = directory_pb.GetTenantRequest(tenant_id=tenant_id)
        found = (await self._peer.call(self._stub.GetTenant, request, timeout_s=TIMEOUT_S)).tenant.agent
        return Agent(found.agent_id, Settings(found.persona, found.model))


class AdapterModel:
    """Implements ports.Model."""

    def __init__(self, adapter: Peer) -> None:
        self._peer = adapter
        self._stub: Any = model_grpc.ModelServiceStub(adapter.channel)

    async def summarise(
        self, tenant_id: str, model: str, former: str, messages: Sequence[Message], tokens: int, timeout_s: float
    ) -> str:
        request = model_pb.SummarizeRequest(
            tenant_id=tenant_id,
            model=model,
            former_summary=former,
            messages=[adapter_pb.ContextMessage(role=one.role, text=one.text) for one in messages],
            token_count=tokens,
        )
        answer = await self._peer.call(self._stub.Summarize, request, timeout_s=timeout_s)
        return str(answer.text)
