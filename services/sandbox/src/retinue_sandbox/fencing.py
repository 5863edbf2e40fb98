"""The highest fencing token of each session, so that an attempt that was overtaken changes nothing more."""

from collections import OrderedDict
from threading import Lock

from retinue_kit.errors import Reason, RetinueError
from retinue_kit.metrics import stale_writes_refused

SESSIONS_MAX = 32_768
"""Sessions whose token is remembered, the latest ones: more than are busy within a lease's time, about 8 MB."""

Key = tuple[str, str]
"""A tenant and a session of it."""


LEAST_TOKEN = 1
"""The least that the contract allows; sessions that never fence, as those of MCP, use no other."""


class Fences:
    """Remembers tokens by session. Safe to use from any thread."""

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._tokens: OrderedDict[Key, int] = OrderedDict()
        self._sessions_max = sessions_max
        self._lock = Lock()

    def check(self, key: Key, token: int) -> None:
        """Raise STALE_FENCING_TOKEN if a higher token was seen."""
        highest = self._tokens.get(key, 0)
        if token < highest:
            stale_writes_refused.labels("box").inc()
            message = "Another attempt of this session has begun since."
            raise RetinueError(Reason.STALE_FENCING_TOKEN, message, current=str(highest))

    def admit(self, key: Key, token: int) -> None:
        """Remember a token. Raises STALE_FENCING_TOKEN if a higher one was seen; the same one may come again."""
        with self._lock:
            self.check(key, token)
            if token <= LEAST_TOKEN and key not in self._tokens:
                return  # it refuses nobody, so it must not cost another session its place
            self._tokens[key] = token
            self._tokens.move_to_end(key)
            if len(self._tokens) > self._sessions_max:
                self._tokens.popitem(last=False)
