"""What bubblewrap is asked for: what a box sees, and what it cannot do."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retinue_sandbox.bwrap import forwarder

BOX_UID = 1000
"""Whoever runs in a box sees itself as this; who it is on the machine is seen from outside alone."""

TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108 - the box's own
TMP_SIZE_BYTES = 64 << 20
SHM_SIZE_BYTES = 16 << 20
"""What is written there is memory."""

MEMLOCK_BYTES = 64 << 10
OPEN_FILE_COUNT = 4096
SIGNAL_COUNT = 1024
"""Of each process in a box; executions have less."""

OOM_SCORE = 500
"""Where memory is short on the machine, boxes go first."""

AGENT_FOLDER = "/run"
PYTHON_PREFIX, LIBRARY_FOLDER = "/opt/python", "/opt/libpython"
"""Where the interpreter is if the system has none of its own, and the library of that by itself: others that may lie
beside it are not for the system's programs."""

PYTHON_MIN = (3, 9)
"""What the agent is written for."""

ASK_TIMEOUT_S = 10.0

ENVIRONMENT = {
    "HOME": "/workspace",
    "LANG": "C.UTF-8",
    "LOGNAME": "agent",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "SHELL": "/bin/sh",
    "TMPDIR": TMP,
    "TZ": "UTC",
    "USER": "agent",
}
"""All of it. What a program keeps at home is kept, as the tenant's other files are."""

FILES = {
    "/etc/passwd": f"agent:x:{BOX_UID}:{BOX_UID}::/workspace:/bin/sh\n",
    "/etc/group": f"agent:x:{BOX_UID}:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
"""Programs ask for these; the machine's own are nobody's business."""

SHOWN = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs", "/etc/pki/tls/certs")
"""Of the machine's /etc: where libraries and programs are, and whom browsers trust."""

LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""On most machines links into /usr, on others folders."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that the agent runs in. `prefix` is its folder on the machine, where a box does not see it anyway."""

    program: str
    """Its path in a box."""
    machine_program: Path
    """Its path on the machine."""
    prefix: Path | None = None
    library: str = ""
    """Name of its own library in the prefix, which it would look for where it was installed; "" without one."""


def interpreter(system: Path = Path("/usr/bin/python3")) -> Interpreter:
    """Find the system's own, else the one that runs this. Blocks; runs what it finds."""
    if system.resolve().is_relative_to("/usr") and _version(system) >= PYTHON_MIN:
        return Interpreter(str(system), system)
    prefix = Path(sys.base_prefix).resolve()
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if not program.is_relative_to(prefix):
        program = prefix / f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    if prefix.is_relative_to("/usr"):
        return Interpreter(str(program), program)
    return lent(program, prefix)


def lent(program: Path, prefix: Path) -> Interpreter:
    """Take an interpreter that lies in a folder of its own."""
    library = next(prefix.glob(f"lib/libpython{sys.version_info[0]}.{sys.version_info[1]}.so.*"), Path())
    return Interpreter(f"{PYTHON_PREFIX}/{program.relative_to(prefix)}", program, prefix, library.name)


_COMPILE = """
import importlib.util, marshal, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        code = marshal.dumps(compile(file.read(), path.rpartition("/")[2], "exec", dont_inherit=True, optimize=2))
    data = importlib.util.MAGIC_NUMBER + bytes(12) + code
    sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)
"""


def compiled(python: Interpreter, sources: Sequence[Path]) -> dict[str, bytes]:
    """Compile modules for a box's Python: by name in the agent's folder, what is in the file. Blocks; runs that Python.

    Otherwise each box would do it, in half of the time that it takes to open and with a MiB that it then keeps. Raises
    OSError or subprocess.SubprocessError where it cannot be done.
    """
    command = [str(python.machine_program), "-I", "-S", "-c", _COMPILE, *map(str, sources)]
    made = subprocess.run(command, capture_output=True, timeout=ASK_TIMEOUT_S, env={}, check=True, cwd="/").stdout
    files = {}
    for source in sources:
        end = 4 + int.from_bytes(made[:4], "big")
        files[f"{source.stem}.pyc"] = made[4:end]
        made = made[end:]
    return files


def _version(program: Path) -> tuple[int, ...]:
    try:
        asked = subprocess.run(
            [program, "-I", "-S", "--version"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, env={}, cwd="/"
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"(\d+)\.(\d+)", asked.stdout)
    return tuple(map(int, found.groups())) if found else ()


@dataclass(frozen=True, slots=True)
class Parts:
    """What one box is made of: descriptors that bubblewrap inherits, and paths as the box's user reaches them."""

    workspace_fd: int
    info_fd: int
    block_fd: int
    seccomp_fds: Sequence[int]
    file_fds: Mapping[str, int] = field(default_factory=dict)
    """By path in the box; read to their end."""
    egress_path: str = ""
    python_path: str = ""
    """The interpreter's folder; "" where the box sees it by itself."""
    library: str = ""
    """See Interpreter."""


def options(parts: Parts, environ: Mapping[str, str], root: Path = Path("/")) -> list[str]:
    """List them in bubblewrap's order, in which each is done.

    Nothing is made or mounted beneath /workspace once that is bound, and it is bound last: a link that a tenant has put
    there would have bubblewrap write wherever the link leads (CVE-2026-87766).
    """
    made = [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup"),
        *("--disable-userns", "--uid", str(BOX_UID), "--gid", str(BOX_UID), "--hostname", "box"),
        # The agent is process 1: it cannot be killed from inside, and no path of the machine shows in its place.
        *("--as-pid-1", "--new-session", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"),
    ]
    for name, value in environ.items():
        made += ["--setenv", name, value]
    made += ["--ro-bind", f"{root}usr", "/usr"]
    for name in LINKS:
        made += _link(root / name, name)
    made += ["--dir", "/etc", "--dir", "/run", "--dir", "/opt", "--dir", "/var", "--symlink", TMP, f"/var{TMP}"]
    for path in SHOWN:
        made += ["--ro-bind-try", path, path]
    if parts.python_path:
        made += ["--ro-bind", parts.python_path, PYTHON_PREFIX]
    if parts.library:
        library = f"{parts.python_path}/lib/{parts.library}"
        made += ["--ro-bind", library, f"{LIBRARY_FOLDER}/{parts.library}"]
    for path, fd in parts.file_fds.items():
        made += ["--perms", "0444", "--file", str(fd), path]
    made += ["--proc", "/proc", "--dev", "/dev", "--size", str(SHM_SIZE_BYTES), "--tmpfs", SHM]
    made += ["--remount-ro", "/dev", "--perms", "1777", "--size", str(TMP_SIZE_BYTES), "--tmpfs", TMP]
    if parts.egress_path:
        made += ["--ro-bind", parts.egress_path, forwarder.PROXY_FOLDER]
    made += ["--bind-fd", str(parts.workspace_fd), "/workspace", "--remount-ro", "/", "--chdir", "/workspace"]
    for fd in parts.seccomp_fds:
        made += ["--add-seccomp-fd", str(fd)]
    return [*made, "--info-fd", str(parts.info_fd), "--block-fd", str(parts.block_fd)]


def environment(interpreter: Interpreter, *, egress: bool) -> dict[str, str]:
    """Tell a box's environment."""
    environ = dict(ENVIRONMENT)
    if interpreter.prefix is not None:
        environ["PATH"] = f"{environ['PATH']}:{PYTHON_PREFIX}/bin"
    if interpreter.library:
        environ["LD_LIBRARY_PATH"] = LIBRARY_FOLDER
    return environ | forwarder.ENVIRONMENT if egress else environ


def command(interpreter: Interpreter, process_count: int) -> list[str]:
    """Tell what runs in the box: the agent, once it has given up what no process of a box is to have.

    That cannot be done from outside everywhere: it takes CAP_SYS_RESOURCE to set limits of another user's process.
    """
    limits = {
        resource.RLIMIT_NPROC: process_count,
        resource.RLIMIT_NOFILE: OPEN_FILE_COUNT,
        resource.RLIMIT_MEMLOCK: MEMLOCK_BYTES,
        resource.RLIMIT_SIGPENDING: SIGNAL_COUNT,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 0,
    }
    start = (
        "import marshal\nimport resource as r\n"
        f"for n, m in {list(limits.items())}:\n"
        " h = r.getrlimit(n)[1]\n"
        " m = m if h == r.RLIM_INFINITY else min(m, h)\n"
        " r.setrlimit(n, (m, m))\n"
        f"with open('/proc/self/oom_score_adj', 'w') as f:\n f.write('{OOM_SCORE}')\n"
        f"__file__ = '{AGENT_FOLDER}/agent.pyc'\n"
        "with open(__file__, 'rb') as f:\n"
        " f.seek(16)\n"
        " c = marshal.loads(f.read())\n"
        "exec(c)"
    )
    return [interpreter.program, "-I", "-S", "-c", start]


def _link(path: Path, name: str) -> list[str]:
    if path.is_symlink():
        target = os.path.normpath(Path("/") / os.readlink(path))
        return ["--symlink", target.lstrip("/"), f"/{name}"] if target.startswith("/usr/") else []
    return ["--ro-bind", str(path), f"/{name}"] if path.is_dir() else []
