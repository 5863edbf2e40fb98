"""Becomes Envoy: as another user where asked, and so that it ends with whoever began it. Run as a file of its own.

Arguments: the parent's id, the user (-1: as it is), a descriptor of the program, and the program's arguments.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


def main(parent: int, uid: int, program: int, arguments: "list[str]") -> None:
    """Never returns."""
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    # Another user's identity takes the death signal away, so it comes after.
    for option, value in ((PR_SET_NO_NEW_PRIVS, 1), (PR_SET_PDEATHSIG, int(signal.SIGKILL))):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it ended before the signal was asked for
        sys.exit(1)
    # By its descriptor, since the folders above it may be closed to that user.
    os.execv(f"/proc/self/fd/{program}", arguments)  # noqa: S606 - this very program is what was asked for


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
