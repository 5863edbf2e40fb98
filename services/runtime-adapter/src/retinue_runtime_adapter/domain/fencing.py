"""The highest fencing token of each session, so that an attempt that was overtaken is refused."""

from collections import OrderedDict

from retinue_kit.errors import Reason, RetinueError

SESSIONS_MAX = 32_768
"""Sessions whose token is remembered, the latest ones: more than are busy within a lease's time, about 8 MB. The stores
hold the same line for ever; this only keeps an overtaken worker from spending on a model."""


class Fences:
    """Remembers tokens by session."""

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._tokens: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._sessions_max = sessions_max

    def admit(self, tenant_id: str, session_id: str, token: int) -> None:
        """Remember a token. Raises STALE_FENCING_TOKEN if a higher one was seen; the same one may come again."""
        key = (tenant_id, session_id)
        highest = self._tokens.get(key, 0)
        if token < highest:
            raise RetinueError(
                Reason.STALE_FENCING_TOKEN, "Another attempt of this session has begun since.", current=str(highest)
            )
        self._tokens[key] = token
        self._tokens.move_to_end(key)
        if len(self._tokens) > self._sessions_max:
            self._tokens.popitem(last=False)
