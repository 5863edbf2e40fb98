"""Looking names up, each in a thread that a stranger's slow server may hold for a while."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

THREADS_MAX = 64
"""As many look-ups as there may be attempts at once: a thread is held for as long as the system's resolver tries, also
where nobody waits for it any more."""


class Names:
    """The system's resolver."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS_MAX, "names")

    async def addresses(self, host: str, port: int) -> list[str]:
        """Look a host up: its addresses, none twice. Raises OSError if there are none; the caller sets the deadline."""

        def look_up() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))

        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)

    def close(self) -> None:
        """Wait for nobody: what is still being looked up is forgotten."""
        self._threads.shutdown(wait=False, cancel_futures=True)
