"""Threads for work that blocks, so that no tenant has more than its share and nobody holds up the loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from retinue_kit.errors import Reason, RetinueError

R = TypeVar("R")

THREADS_MAX = 8
TENANT_THREADS_MAX = 2
"""At once for one tenant: one that reads while another writes."""

TENANT_WAITING_MAX = 256
"""Calls of a tenant that wait for a thread; each is done within milliseconds."""

WAIT_AGAIN_S = 1.0


class _Turn(asyncio.Semaphore):
    """A tenant's."""

    waiting = 0


class Turns:
    """Hands threads out."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="files")
        self._turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()

    async def run(self, tenant_id: str, work: Callable[[], R]) -> R:
        """Have something done. Raises what it raises; RetinueError(QUOTA_EXCEEDED) where too many wait already.

        Whoever stops waiting does not stop the work, and the thread counts until it is done.
        """
        turn = self._turns.get(tenant_id)
        if turn is None:
            turn = self._turns[tenant_id] = _Turn(TENANT_THREADS_MAX)
        if turn.waiting >= TENANT_WAITING_MAX:
            text = "Too many calls for the tenant's files wait already."
            raise RetinueError(Reason.QUOTA_EXCEEDED, text, retry_after_s=WAIT_AGAIN_S)
        turn.waiting += 1
        try:
            await turn.acquire()
        finally:
            turn.waiting -= 1
        try:
            done = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except BaseException:
            turn.release()
            raise

        def release(ended: "asyncio.Future[R]") -> None:
            turn.release()
            if not ended.cancelled():
                ended.exception()  # seen, even where nobody waits any more

        done.add_done_callback(release)
        return await asyncio.shield(done)

    def close(self) -> None:
        """Take no more work; what is under way ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
