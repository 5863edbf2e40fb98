"""Begins in a pod: lets whoever knows the token talk to the agent. Standard library only; one talk in its life.

RETINUE_TOKEN_DIGEST is the token's SHA-256 in hexadecimal digits: who reads it in the pod can do nothing with it. Once
the talk is over the agent ends, and the pod with it.
"""

import hashlib
import hmac
import os
import socket
import sys
import time

PORT = 3129
"""Where it listens."""

TOKEN_LENGTH = 64
"""Characters of a token; whoever connects says it first."""

ABANDONED_S = 180.0
"""Without a talk it ends after so long."""

TOKEN_TIMEOUT_S = 5.0
"""For saying the token."""

KEEPALIVE_S = 30
"""A peer that is gone without a word is noticed after some three of these."""

BACKLOG = 4


def admit(listening: socket.socket, digest: str, timeout_s: float = ABANDONED_S) -> "socket.socket | None":
    """Wait for whoever knows the token; None if nobody does in time."""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        listening.settimeout(left)
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            break
        if _knows(connection, digest):
            return connection
        connection.close()
    return None


def _knows(connection: socket.socket, digest: str) -> bool:
    token = b""
    end = time.monotonic() + TOKEN_TIMEOUT_S
    try:
        while len(token) < TOKEN_LENGTH and (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            more = connection.recv(TOKEN_LENGTH - len(token))
            if not more:
                return False
            token += more
    except OSError:
        return False
    return hmac.compare_digest(hashlib.sha256(token).hexdigest(), digest)


def main() -> None:
    """Become the agent. Never returns."""
    digest = os.environ.pop("RETINUE_TOKEN_DIGEST")
    agent = sys.argv[1]
    with socket.create_server((sys.argv[2] if len(sys.argv) > 2 else "", PORT), backlog=BACKLOG) as listening:
        connection = admit(listening, digest)
    if connection is None:
        sys.exit("nobody came")
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        connection.setsockopt(socket.IPPROTO_TCP, option, KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    os.dup2(connection.fileno(), 0)
    void = os.open(os.devnull, os.O_RDWR)
    os.dup2(void, 1)
    os.dup2(void, 2)
    os.execv(sys.executable, [sys.executable, "-I", "-S", agent])  # noqa: S606 - the agent of this very image


if __name__ == "__main__":
    main()
