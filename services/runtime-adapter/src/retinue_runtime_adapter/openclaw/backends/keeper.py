"""Holds one gateway: begins it, and leaves nothing of it behind, however it or the adapter ends.

A script of its own, with the standard library only: `keeper.py FILES CGROUP COMMAND...`. A gateway begins helpers, some
in sessions of their own, that outlive it when it is killed. All of them come to belong to the keeper once their parent
is gone, and the keeper ends them.

    standard input    the adapter holds its other end: at its end, be it the adapter's death, everything is killed
    standard output   one line, the gateway's process id; what the gateway prints goes nowhere, it is tenants' text
    SIGTERM           is passed on; what is left when the gateway has ended is killed
    exit status       the gateway's, or 128 and the number of the signal that ended it
"""

import ctypes
import os
import resource
import select
import signal
import sys
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

KILL_ROUNDS_MAX = 100
"""Looks for processes that are left; each kills all that there are, so more than a few are never needed."""

KILL_PAUSE_S = 0.05
"""Between two looks: for those killed to be gone."""


def _prctl(option: int, value: int) -> None:
    # Where there is no such call, a gateway that is killed leaves its helpers to the adapter's next start.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _become(command: list[str], files: int, cgroup: str) -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if cgroup:
        with open(os.path.join(cgroup, "cgroup.procs"), "w") as procs:
            procs.write("0")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.umask(0o077)
    os.execve(command[0], command, os.environ)  # noqa: S606 - the adapter's own command


def _children() -> list[int]:
    # A kernel that does not tell leaves them to the adapter, which looks for them too.
    with suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as listed:
        return [int(pid) for pid in listed.read().split()]
    return []


def _kill_all() -> None:
    """Kill every descendant; those of who dies come to this process."""
    for _ in range(KILL_ROUNDS_MAX):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        select.select([], [], [], KILL_PAUSE_S)


def _reap(pid: int) -> int | None:
    """Take leave of those that have ended; answers the gateway's status if it is among them."""
    found = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == pid:
                found = ended[1]
    return found


def _follow(pid: int, wakeup: int) -> int:
    """Wait until the gateway ends, or must; answers its status."""
    while True:
        readable, _, _ = select.select([0, wakeup], [], [])
        if wakeup in readable:
            for number in os.read(wakeup, 64):
                if number == signal.SIGTERM:
                    os.kill(pid, signal.SIGTERM)
        status = _reap(pid)
        if status is not None:
            return status
        if 0 in readable and not os.read(0, 64):
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1]


def main() -> int:
    """Begin, follow, clean up."""
    files, cgroup, *command = sys.argv[1:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeup, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            _become(command, int(files), cgroup)
        except BaseException as error:
            os.write(2, f"cannot begin: {error}\n".encode())
        os._exit(127)
    os.write(1, f"{pid}\n".encode())
    os.close(1)
    status = _follow(pid, wakeup)
    _kill_all()
    return os.waitstatus_to_exitcode(status) % 256 if not os.WIFSIGNALED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    sys.exit(main())
