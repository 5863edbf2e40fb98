"""Runs inside a box that may reach something: carries connections to 127.0.0.1:3128 over to the proxy's Unix socket.

It decides nothing, and it may be killed by whatever runs in the box: then nothing is reached. Standard library only.
The agent starts it by `start()`, in a process of its own, or anybody by `python3 forwarder.py`.
"""

import contextlib
import os
import selectors
import socket
import sys

PROXY_FOLDER = "/run/egress"
"""Where the way out is bound into a box; there is none in a box that may reach nothing."""

PROXY_SOCKET = "proxy.sock"
"""The proxy's socket in that folder. A proxy that ends and comes back makes another one under the same name, so it is
the folder that is bound."""

PORT = 3128
"""Where the box finds its proxy, on loopback."""

PROXY_URL = "http://127.0.0.1:3128"

ENVIRONMENT = {
    "HTTP_PROXY": PROXY_URL,
    "HTTPS_PROXY": PROXY_URL,
    "http_proxy": PROXY_URL,
    "https_proxy": PROXY_URL,
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
"""What tells programs in the box of it."""

CONNECTIONS_MAX = 64
"""At once; further ones wait until one ends. The proxy allows half of that."""

CHUNK_SIZE_BYTES = 64 * 1024
"""What is held of each direction of a connection while its reader is slow."""

BACKLOG = 64


class Direction:
    """One direction of a connection: what was read of one end and is not yet written to the other."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held = b""
        self.ended = False
        """Whether the source will say nothing more."""
        self.shut = False
        """Whether the sink was told so."""

    def move(self) -> None:
        """Carry what can be carried without waiting. Raises OSError if an end is gone."""
        if not self.held and not self.ended:
            try:
                self.held = self.source.recv(CHUNK_SIZE_BYTES)
                self.ended = not self.held
            except BlockingIOError:
                pass
        if self.held:
            with contextlib.suppress(BlockingIOError):
                self.held = self.held[self.sink.send(self.held) :]
        if self.ended and not self.held and not self.shut:
            self.shut = True
            self.sink.shutdown(socket.SHUT_WR)


class Forwarder:
    """Carries all connections, in one thread."""

    def __init__(self, listening: socket.socket, path: str) -> None:
        self._listening = listening
        self._path = path
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, tuple[Direction, Direction]] = {}
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)

    def serve(self) -> None:
        """Carry until killed."""
        while True:
            self.turn(None)

    def close(self) -> None:
        """End all connections."""
        for pair in list(self._pairs.values()):
            if pair[0].source in self._pairs:
                self._end(pair)
        self._selector.close()
        self._listening.close()

    def turn(self, timeout_s: "float | None") -> None:
        """Wait for something to do, and do it."""
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listening:
                self._accept()
            elif pair := self._pairs.get(key.fileobj):  # type: ignore[call-overload]  # else ended in this very turn
                self._carry(pair)

    def _accept(self) -> None:
        try:
            inner, _ = self._listening.accept()
        except OSError:
            return
        outer = socket.socket(socket.AF_UNIX)
        inner.setblocking(False)
        outer.setblocking(False)
        try:
            outer.connect(self._path)
        except OSError:  # nobody listens there any more, or too many wait to be let in
            outer.close()
            inner.close()
            return
        pair = Direction(inner, outer), Direction(outer, inner)
        for end in (inner, outer):
            self._pairs[end] = pair
            self._selector.register(end, selectors.EVENT_READ)
        if len(self._pairs) >= 2 * CONNECTIONS_MAX:
            self._want(self._listening, 0)

    def _carry(self, pair: "tuple[Direction, Direction]") -> None:
        try:
            for direction in pair:
                direction.move()
        except OSError:
            self._end(pair)
            return
        if all(direction.shut for direction in pair):
            self._end(pair)
            return
        for direction, other in (pair, pair[::-1]):
            # An end is read while nothing of it is held, and written while something for it is.
            wanted = 0 if direction.held or direction.ended else selectors.EVENT_READ
            wanted |= selectors.EVENT_WRITE if other.held else 0
            self._want(direction.source, wanted)

    def _want(self, end: socket.socket, wanted: int) -> None:
        if end in self._selector.get_map():
            if wanted:
                self._selector.modify(end, wanted)
            else:
                self._selector.unregister(end)
        elif wanted:
            self._selector.register(end, wanted)

    def _end(self, pair: "tuple[Direction, Direction]") -> None:
        for direction in pair:
            end = direction.source
            del self._pairs[end]
            self._want(end, 0)
            end.close()
        if len(self._pairs) < 2 * CONNECTIONS_MAX:
            self._want(self._listening, selectors.EVENT_READ)


def listen(port: int = PORT) -> socket.socket:
    """Listen on the box's loopback."""
    listening = socket.socket(socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(BACKLOG)
    return listening


def start(folder: str = PROXY_FOLDER) -> int:
    """Begin it in a child process, listening once this returns; answers the child's id. 0 if the box has no way out.

    The caller reaps it. The child keeps no descriptor of the caller's open but the standard ones.
    """
    if not os.path.exists(folder):
        return 0
    listening = listen()
    child = os.fork()
    if child:
        listening.close()
        return child
    code = 1
    try:
        kept = listening.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 4096)
        # The agent's end of the control socket may be among the standard ones.
        void = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(void, number)
        Forwarder(listening, f"{folder}/{PROXY_SOCKET}").serve()
    finally:
        os._exit(code)


if __name__ == "__main__":
    Forwarder(listen(), f"{sys.argv[1] if len(sys.argv) > 1 else PROXY_FOLDER}/{PROXY_SOCKET}").serve()
