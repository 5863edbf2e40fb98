"""The forwarder in a box carries bytes whole, both ways, in little memory, and outlives whoever goes."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from retinue_sandbox.bwrap import forwarder
from retinue_sandbox.bwrap.forwarder import Forwarder

TIMEOUT_S = 10.0
SIZE_BYTES = 4 << 20


@pytest.fixture
def proxy(run_dir: Path) -> Iterator[socket.socket]:
    """Listen as the proxy would."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run_dir / forwarder.PROXY_SOCKET))
        listening.listen(8)
        listening.settimeout(TIMEOUT_S)
        yield listening


@pytest.fixture
def port(run_dir: Path) -> Iterator[int]:
    """Have a forwarder, in a thread of this process."""
    ended = threading.Event()
    listening = forwarder.listen(0)
    number: int = listening.getsockname()[1]
    carrying = Forwarder(listening, f"{run_dir}/{forwarder.PROXY_SOCKET}")

    def carry() -> None:
        while not ended.is_set():
            carrying.turn(0.02)

    thread = threading.Thread(target=carry)
    thread.start()
    yield number
    ended.set()
    thread.join(TIMEOUT_S)
    carrying.close()


def connect(port: int) -> socket.socket:
    """Connect as a program in the box does."""
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S)


def received(end: socket.socket) -> bytes:
    """Read until there is no more."""
    end.settimeout(TIMEOUT_S)
    found = bytearray()
    while more := end.recv(1 << 20):
        found += more
    return bytes(found)


def test_what_is_said_arrives_whole_and_an_end_of_one_direction_leaves_the_other(
    proxy: socket.socket, port: int
) -> None:
    data = os.urandom(SIZE_BYTES)
    with connect(port) as inner:
        outer, _ = proxy.accept()
        with outer:
            sending = threading.Thread(target=lambda: (inner.sendall(data), inner.shutdown(socket.SHUT_WR)))
            sending.start()
            assert received(outer) == data
            sending.join(TIMEOUT_S)
            answering = threading.Thread(target=lambda: (outer.sendall(data[::-1]), outer.shutdown(socket.SHUT_WR)))
            answering.start()
            assert received(inner) == data[::-1]
            answering.join(TIMEOUT_S)


def test_bounded_memory_for_a_reader_that_does_not_read(proxy: socket.socket, port: int) -> None:
    with connect(port):
        outer, _ = proxy.accept()
        with outer:
            outer.settimeout(0.5)
            with pytest.raises(TimeoutError):
                outer.sendall(bytes(64 << 20))
            # Others are carried meanwhile.
            with connect(port) as other:
                answering, _ = proxy.accept()
                with answering:
                    answering.sendall(b"hello")
                    other.settimeout(TIMEOUT_S)
                    assert other.recv(5) == b"hello"


def test_whoever_goes_takes_only_its_own_connection_along(proxy: socket.socket, port: int) -> None:
    for number in range(forwarder.CONNECTIONS_MAX + 1):
        with connect(port) as inner:
            outer, _ = proxy.accept()
            with outer:
                if number % 2:
                    inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
                    inner.close()
                    assert received(outer) == b""
                else:
                    outer.close()
                    assert received(inner) == b""


def test_without_a_proxy_connections_end_at_once(port: int) -> None:
    with connect(port) as inner:
        assert received(inner) == b""


def test_it_starts_only_where_there_is_a_way_out(run_dir: Path) -> None:
    assert forwarder.start(str(run_dir / "nowhere")) == 0
    # It is a program of its own as well, of the standard library alone.
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({forwarder.__file__!r})"], timeout=TIMEOUT_S
    )
    assert ran.returncode == 0
