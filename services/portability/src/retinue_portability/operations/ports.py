"""What portability needs from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from retinue_portability.domain.content import Cursor, Fact, Message, Settings
from retinue_portability.domain.context import Event


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation that is asked for."""

    tenant_id: str
    contact: str
    session_id: str = ""
    """The contact's current one if empty."""
    through_cursor: str = ""
    """Only what is up to this cursor; all that is durable if empty."""


@dataclass(frozen=True, slots=True)
class Logged:
    """What the log holds of a session."""

    session_id: str
    display_name: str
    channel: str
    profile: Mapping[str, Any]
    through: Cursor
    events: Sequence[Event]
    unreadable_count: int = 0
    """Events that make no sense to us."""
    passed_over_count: int = 0
    """Messages that are not among the events, since these are too many; the oldest ones."""
    passed_over_through: Cursor | None = None
    """The last of those."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A tenant's agent."""

    agent_id: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a conversation begins with."""

    tenant_id: str
    contact: str
    digest: str
    messages: Sequence[Message]
    summary: str
    summary_message_count: int
    losses: Sequence[str]
    profile: Mapping[str, Any]
    display_name: str
    channel: str


class Logs(Protocol):
    """The router's log."""

    async def read(self, session: Session) -> Logged:
        """Read a session. Raises CONTACT_NOT_FOUND."""
        ...

    async def bring(self, fresh: Fresh) -> str:
        """Begin a conversation; answers its id, the same for the same digest. Raises SESSION_BUSY."""
        ...


class Memory(Protocol):
    """What is remembered."""

    async def facts(self, tenant_id: str, contact: str) -> list[Fact]:
        """List what is remembered of a contact; for an empty contact what concerns the tenant."""
        ...

    async def remember(self, tenant_id: str, contact: str, facts: Sequence[Fact]) -> None:
        """Remember facts that are not remembered yet. Raises QUOTA_EXCEEDED."""
        ...


class Agents(Protocol):
    """The directory."""

    async def agent(self, tenant_id: str) -> Agent:
        """Read a tenant's agent. Raises TENANT_NOT_FOUND."""
        ...


class Model(Protocol):
    """A model that sums up."""

    async def summarise(
        self, tenant_id: str, model: str, former: str, messages: Sequence[Message], tokens: int, timeout_s: float
    ) -> str:
        """Sum up what was said, with a summary of what was before. Raises RetinueError, whatever goes wrong."""
        ...
