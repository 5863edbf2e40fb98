"""Runs in a box and tries to get out of it: each look writes its name, whether the box held, and what was seen.

Standard library only, Python 3.9 or newer. What is to be tried comes in the environment, since it differs from box to
box: PROBE_FILE is a file of the machine, PROBE_PORT and PROBE_NAME are a TCP port and an abstract Unix socket on which
the service listens, PROBE_LINK is a link in /workspace that leads out of the box.
"""

import ctypes
import errno
import json
import os
import platform
import pty
import socket
import sys
from typing import Tuple  # noqa: UP035 - the box's Python may be older than the service's

SYSCALLS = {
    "x86_64": {
        "bpf": 321, "io_uring_setup": 425, "keyctl": 250, "mount": 165, "perf_event_open": 298, "ptrace": 101,
        "setns": 308, "unshare": 272, "userfaultfd": 323, "open_by_handle_at": 304, "process_vm_readv": 310,
    },
    "aarch64": {
        "bpf": 280, "io_uring_setup": 425, "keyctl": 219, "mount": 40, "perf_event_open": 241, "ptrace": 117,
        "setns": 268, "unshare": 97, "userfaultfd": 282, "open_by_handle_at": 265, "process_vm_readv": 270,
    },
}  # fmt: skip
"""What nobody in a box is to call, by kind of machine."""

NEW_NAMESPACES = (0x10000000, 0x00020000, 0x20000000, 0x40000000)
"""User, mount, process, network."""

FAMILIES = {"AF_NETLINK": 16, "AF_PACKET": 17, "AF_BLUETOOTH": 31, "AF_ALG": 38, "AF_VSOCK": 40}
TIOCSTI = 0x5412
HIGH_BIT = 1 << 32
"""Beyond what the kernel looks at; a comparison of all bits would let it through."""

ABSENT = ("/root", "/home", "/etc/shadow", "/oldroot", "/newroot", "/sys", "/mnt", "/srv")
CLOSED = ("/", "/usr", "/usr/bin", "/etc", "/run", "/dev", "/opt", "/var", "/proc/sys/kernel")
OPEN = ("/workspace", "/tmp", "/dev/shm")  # noqa: S108 - the box's own

PROCESSES_MAX = 16
"""Of a new box there are two or three."""

CONNECT_TIMEOUT_S = 1.0

LIBC = ctypes.CDLL(None, use_errno=True)
Look = Tuple[bool, str]  # noqa: UP006


def files() -> Look:
    """Nothing of the machine's own is there, and nothing but the workspace and /tmp can be written to."""
    wrong = [path for path in (*ABSENT, os.environ["PROBE_FILE"]) if os.path.lexists(path)]
    with open("/etc/passwd", encoding="utf-8") as file:
        wrong += ["/etc/passwd"] if "root" in file.read() else []
    wrong += [f"{folder} is open" for folder in CLOSED if writable(folder)]
    wrong += [f"{folder} is closed" for folder in OPEN if not writable(folder)]
    return not wrong, ", ".join(wrong) or "only the workspace and /tmp"


def links() -> Look:
    """A link in the workspace leads nowhere."""
    held = not os.path.exists(os.environ["PROBE_LINK"])
    return held, "they lead nowhere" if held else "one leads out"


def processes() -> Look:
    """Only the box's own are seen."""
    seen = sum(name.isdigit() for name in os.listdir("/proc"))
    with open("/proc/1/cmdline", "rb") as file:
        own = b"agent.pyc" in file.read()
    return own and seen <= PROCESSES_MAX, f"{seen} are seen"


def network() -> Look:
    """There is nothing but a loopback of the box's own."""
    with open("/proc/net/dev", encoding="ascii") as file:
        wrong = sorted({line.partition(":")[0].strip() for line in file.readlines()[2:]} - {"lo"})
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", int(os.environ["PROBE_PORT"]))),
        (socket.AF_INET, ("169.254.169.254", 80)),
        (socket.AF_UNIX, "\0" + os.environ["PROBE_NAME"]),
    ):
        with socket.socket(family) as tried:
            tried.settimeout(CONNECT_TIMEOUT_S)
            if tried.connect_ex(address) == 0:
                wrong.append(f"{address!r} answers")
    return not wrong, ", ".join(wrong) or "there is none"


def namespaces() -> Look:
    """No namespaces can be made within it."""
    number = SYSCALLS[platform.machine()]["unshare"]
    wrong = [hex(flags) for flags in NEW_NAMESPACES if call(number, flags) != errno.EPERM]
    return not wrong, "made: " + ", ".join(wrong) if wrong else "none can be made"


def kernel() -> Look:
    """Calls that lead deep into the kernel are closed."""
    numbers = SYSCALLS[platform.machine()]
    wrong = [name for name, number in numbers.items() if call(number, 0, 0, 0, 0, 0) != errno.EPERM]
    for name, family in FAMILIES.items():
        try:
            socket.socket(family, socket.SOCK_RAW).close()
            wrong.append(name)
        except PermissionError:
            continue
        except OSError as error:  # the kernel was asked, and it happens to know nothing of it
            wrong.append(f"{name} ({error.strerror})")
    _, terminal = pty.openpty()
    for request in (TIOCSTI, TIOCSTI | HIGH_BIT):
        if LIBC.ioctl(terminal, ctypes.c_ulong(request), ctypes.create_string_buffer(b"x")) == 0:
            wrong.append(f"ioctl {request:#x}")
    return not wrong, "open: " + ", ".join(wrong) if wrong else "they are closed"


def call(number: int, *arguments: int) -> int:
    """Call the system; answers the error's number, 0 if there was none."""
    ctypes.set_errno(0)
    answer = LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
    return ctypes.get_errno() if answer == -1 else 0


def writable(folder: str) -> bool:
    """Whether a file can be made in a folder."""
    path = os.path.join(folder, f".probe-{os.getpid()}")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        return False
    os.unlink(path)
    return True


if __name__ == "__main__":
    for look in (files, links, processes, network, namespaces, kernel):
        try:
            held, seen = look()
        except Exception as error:
            held, seen = False, f"it could not be tried: {error!r}"
        sys.stdout.write(json.dumps([look.__name__, held, seen]) + "\n")
