"""What each OpenClaw session was told, so that it is told the rest.

The conversation's truth is the log, and each run comes with what was said before. An OpenClaw session that was told
just that goes on; in every other case (the first run here, a run elsewhere in between, one that failed halfway) a
new session is opened, and what was said before is given to the model in front of it.
"""

import hashlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from retinue_runtime_adapter.openclaw import keys
from retinue_runtime_adapter.openclaw.prompt import Message

SESSIONS_MAX = 256
"""Conversations remembered of one tenant on one instance; one that is forgotten is opened anew."""

MARKS_MAX = 1_000
"""Messages remembered of one session, eight bytes each."""

WINDOW_MIN = 100
"""Runs come with the latest messages only. So many of them, or all, must be the last that a session was told."""

Line = tuple[str, str]
"""A role and what it said."""


@dataclass(slots=True)
class Session:
    """An OpenClaw session that is good for a run. `before` is what it was not told itself."""

    key: str
    """Its name; "" until a run opens it."""
    before: list[Message]
    marks: deque[bytes] = field(default_factory=lambda: deque(maxlen=MARKS_MAX))

    def holds(self, said: Sequence[bytes]) -> bool:
        """Whether what was said is what it knows."""
        if len(said) > len(self.marks) or (len(said) < len(self.marks) and len(said) < WINDOW_MIN):
            return False
        return list(self.marks)[len(self.marks) - len(said) :] == list(said)


class Sessions:
    """The sessions of one tenant on one instance."""

    def __init__(self, agent_id: str, tenant_id: str) -> None:
        self._agent_id = agent_id
        self._tenant_id = tenant_id
        # An agent that was removed and made again may find leavings of the former: it counts from elsewhere.
        self._count = secrets.randbelow(keys.GENERATION_MAX // 2)
        self._known: OrderedDict[str, Session] = OrderedDict()

    def open(self, session_id: str, contact: str, context: Sequence[Line]) -> Session:
        """Find the session that knows the context, or begin one. It counts as unknown until `said` is called."""
        marks = [_mark(role, text) for role, text in context]
        known = self._known.pop(session_id, None)
        if known is None or not known.holds(marks):
            known = _told(context)
        if not known.key:
            self._count = (self._count + 1) % keys.GENERATION_MAX
            known.key = keys.session_key(self._agent_id, self._tenant_id, contact, session_id, self._count)
        return known

    def take(self, session_id: str, context: Sequence[Line]) -> None:
        """Have the next run of a conversation begin a session with this context, if it comes with the same."""
        self._remember(session_id, _told(context))

    def known(self, session_id: str) -> Session | None:
        """The session of a conversation; None while a run of it is under way, and after one that failed."""
        return self._known.get(session_id)

    def said(self, session_id: str, session: Session, lines: Sequence[Line]) -> None:
        """Remember that a run went well, with what was said in it."""
        session.marks.extend(_mark(role, text) for role, text in lines)
        self._remember(session_id, session)

    def _remember(self, session_id: str, session: Session) -> None:
        self._known.pop(session_id, None)
        self._known[session_id] = session
        if len(self._known) > SESSIONS_MAX:
            self._known.popitem(last=False)


def _told(context: Sequence[Line]) -> Session:
    """A session to be begun, in front of which a context stands."""
    session = Session("", [{"role": role, "content": text} for role, text in context])
    session.marks.extend(_mark(role, text) for role, text in context)
    return session


def _mark(role: str, text: str) -> bytes:
    return hashlib.blake2b(f"{role}\n{text}".encode(errors="surrogatepass"), digest_size=8).digest()
