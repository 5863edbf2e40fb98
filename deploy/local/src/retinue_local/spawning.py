"""How children are started so that none outlives the supervisor, however it ends."""

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_LIBC = ctypes.CDLL(None)
_ORPHANED = 71
"""Exit code of a child whose parent was gone before it could ask to be told (EX_OSERR)."""


class Account(NamedTuple):
    """A user to run as."""

    name: str
    uid: int
    gid: int


def die_with(parent: int, death_signal: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends. Linux only; elsewhere nothing happens."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(_ORPHANED)


def rename(name: str) -> None:
    """Give this process a name in lists of processes; the kernel keeps 15 bytes of it."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


_BOUND = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
except (AttributeError, OSError):
    pass
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]} cannot be run: {error.strerror}")
"""


def bound(*command: str | Path) -> list[str]:
    """A command that ends together with its starter, in a way that is safe where other threads run.

    `limits` runs Python between fork and exec, which a process that has a gRPC channel open may not survive.
    """
    program = shutil.which(str(command[0])) or str(command[0])
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), program, *map(str, command[1:])]


def limits(account: Account | None) -> dict[str, Any]:
    """Arguments for subprocess, for a helper of the supervisor: the account, and an end together with it."""
    parent = os.getpid()
    # What subprocess calls last comes after its change of user, which would undo it.
    arguments: dict[str, Any] = {"process_group": 0, "preexec_fn": lambda: die_with(parent, signal.SIGKILL)}
    if account:
        arguments |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return arguments
