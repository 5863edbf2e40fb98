"""Starts the mesh's processes by forking a small one that has no threads, so that none outlives the supervisor.

The supervisor itself speaks gRPC, whose threads do not bear a fork. And importing takes a service about a second of
processor time: ten of them would take all of the start, and hold ten copies of the same code, so a second process of
this kind has imported what they share. Orders come over a socket as JSON, one message each; so do the answers: a pid
per order, then each exit.

    python -m retinue_local.forkserver SUPERVISOR_PID SOCKET_DESCRIPTOR [MODULE_TO_IMPORT …]
"""

import gc
import importlib
import os
import runpy
import select
import signal
import socket
import sys
import traceback

import msgspec

from retinue_local import spawning
from retinue_local.spawning import Account

MESSAGE_SIZE_MAX_BYTES = 128 * 1024
"""An order holds an environment; the kernel's default buffer for such sockets is larger."""


class Order(msgspec.Struct):
    """What to run: a program, or a Python module."""

    name: str
    command: list[str]
    """A program and its arguments, or the arguments of the module."""
    environ: dict[str, str]
    log: str
    module: str = ""
    account: Account | None = None
    death_signal: int = signal.SIGKILL
    """What it gets if the supervisor is gone."""


class Answer(msgspec.Struct):
    """A process that was started, or (with a code) one that ended; a signal is told as its negative."""

    pid: int
    code: int | None = None


def serve(channel: socket.socket) -> Order:
    """Fork for each order. Answers only in the child, with what it has to become; in the parent it never returns."""
    waking, wake = os.pipe()
    for end in (waking, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        readable, _, _ = select.select([channel.fileno(), waking], [], [])
        if waking in readable:
            os.read(waking, 4096)
            _report_exits(channel)
        if channel.fileno() in readable:
            data = channel.recv(MESSAGE_SIZE_MAX_BYTES)
            if not data:
                os._exit(0)
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (waking, wake):
                    os.close(end)
                channel.close()
                os.setpgid(0, 0)
                order = msgspec.json.decode(data, type=Order)
                redirect(order.log)
                bind(order, parent)
                return order
            channel.send(msgspec.json.encode(Answer(pid)))


def _report_exits(channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        channel.send(msgspec.json.encode(Answer(pid, os.waitstatus_to_exitcode(status))))


def redirect(log: str) -> None:
    """Read from nowhere, write to the log; while this may still write there."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


def bind(order: Order, parent: int) -> None:
    """Change the user, if one is given, then bind this process' life to its parent's, which a change would undo."""
    if order.account:
        os.setgroups([])
        os.setgid(order.account.gid)
        os.setuid(order.account.uid)
    spawning.die_with(parent, order.death_signal)


def become(order: Order) -> None:
    """Turn this process into what was ordered."""
    if not order.module:
        os.chdir("/")
        os.execve(order.command[0], order.command, order.environ)  # noqa: S606 - from the supervisor's own plan
    os.environ.clear()
    os.environ.update(order.environ)
    spawning.rename(order.name)
    sys.argv = [order.module, *order.command]
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve orders."""
    spawning.die_with(int(sys.argv[1]), signal.SIGKILL)
    channel = socket.socket(fileno=int(sys.argv[2]))
    for module in sys.argv[3:]:
        try:
            importlib.import_module(module)
        except Exception:  # whoever needs it will fail by itself, and say so in a log of its own
            traceback.print_exc()
    # What is here now stays; looking at it again would make each child copy the pages it lies on.
    gc.collect()
    gc.freeze()
    become(serve(channel))


if __name__ == "__main__":
    main()
