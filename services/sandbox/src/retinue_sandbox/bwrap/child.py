"""What a process in a box does before it is somebody else's, and what its end says.

In a box this file lies beside `agent.py`: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn

    from retinue_sandbox.bwrap import watching
else:
    import _signal as signal  # without names for numbers, which take a megabyte

ADDRESS_SPACE = 64 << 30
"""Bytes. Runtimes reserve a lot that they never use."""
MEMLOCK = 64 << 10
SIGNALS_PENDING = 256
RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE = 11, 12
"""Python has no names for them."""

PR_SET_DUMPABLE = 4

NICE = 5
"""So that neither the agent nor the machine's other work starves."""

REPORT = 3
"""Where source's unhandled error says which limit it is of."""

FILES_MAX = 4096
"""Descriptors that the agent may have."""

NOT_FOUND, NOT_BEGUN, NOT_FLUSHED = 127, 126, 120
"""Exit codes, as shells and Python have them."""

LETTERS = {b"m": "memory", b"f": "file_size", b"p": "processes", b"d": "disk"}
"""How source says of which limit its unhandled error is."""
LETTER_BY_ERROR = {errno.EFBIG: b"f", errno.EAGAIN: b"p", errno.ENOSPC: b"d", errno.EDQUOT: b"d"}
NO_THREAD = "can't start new thread"
"""What Python says, without a number, where it is refused a thread."""

OURS = ("agent", "child", "framing", "watching", "forwarder")
"""Modules that are not the tenant's."""


def open_to_others(opened: bool) -> None:
    """Let processes of the same user look into this one, or not."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(opened), 0, 0, 0)


def kill(pid: int) -> None:
    """End a process; nothing happens if it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def close(fd: int) -> None:
    """Close a descriptor; a negative one is none."""
    if fd >= 0:
        os.close(fd)


_ENVIRON = dict(os.environb)
_KINDS = (
    resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA, resource.RLIMIT_AS,
    resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE,
)  # fmt: skip
_MOST = {kind: resource.getrlimit(kind)[1] for kind in _KINDS}
"""What the box as a whole has, asked for once: a command waits for all that is done before it begins."""


def limit(execution: watching.Execution, besides: int) -> None:
    """Limit this process and all that it starts, besides so many processes of the box itself."""
    seconds = max(1, int(execution.cpu_s + 0.999))
    memory, processes = 2 * execution.memory, execution.processes + besides
    file_size, files = execution.file_size, execution.files
    wanted = (
        (seconds, seconds + 1),
        (file_size, file_size),
        (files, files),
        # Twice, so that what grows is seen to grow, and named, before it is refused memory.
        (memory, memory),
        (ADDRESS_SPACE, ADDRESS_SPACE),
        (processes, processes),
        (0, 0),
        (MEMLOCK, MEMLOCK),
        (SIGNALS_PENDING, SIGNALS_PENDING),
        (0, 0),
    )
    for kind, (soft, hard) in zip(_KINDS, wanted):  # noqa: B905 - Python 3.9 has no `strict`
        most = _MOST[kind]
        if most != resource.RLIM_INFINITY:
            if most <= soft:  # so the box has it already
                continue
            hard = min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def complain(text: str) -> None:
    """Say why nothing was begun, where the command's own words would be."""
    os.write(2, text.encode("utf-8", "backslashreplace") + b"\n")


def _found(program: bytes, environ: dict[bytes, bytes]) -> bytes:
    """Look a program up as a shell does. `os.execvpe` would as well, having imported more in each process than all of
    this takes.
    """
    if b"/" in program:
        return program
    denied = b""
    for folder in environ.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
        path = os.path.join(folder or b".", program)
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            denied = denied or path
    if not denied:
        raise FileNotFoundError(errno.ENOENT, "")
    return denied


def become(argv: list[bytes], environ: dict[bytes, bytes]) -> NoReturn:
    """Become a program, with these variables beside the box's own."""
    environ = {**_ENVIRON, **environ}
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):  # Python ignores the first two
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(_found(argv[0], environ), argv, environ)  # noqa: S606 - there is no shell
    except OSError as error:
        complain(f"{os.fsdecode(argv[0])}: {os.strerror(error.errno or 0)}")
        os._exit(NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_BEGUN)


def interpret(source: bytes, why: int) -> NoReturn:
    """Run source as `python3 -c` would, and end as that would. The descriptor `why` is told of the limit that an
    unhandled error is of.
    """
    import builtins

    if why != REPORT:
        os.dup2(why, REPORT, False)
    os.closerange(REPORT + 1, FILES_MAX)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in OURS:
        sys.modules.pop(name, None)
    module = type(sys)("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = ["-c"]
    sys.path.insert(0, "")
    code = 1
    try:
        exec(compile(source, "<string>", "exec"), module.__dict__)  # noqa: S102 - what this box is for
        code = 0
    except SystemExit as error:
        code = _exit_code(error.code)
    except BaseException as error:
        _report(error, source)
    os._exit(_wind_up(code))


def _exit_code(wished: object) -> int:
    if wished is None:
        return 0
    if isinstance(wished, int):
        return wished & 0xFF
    sys.stderr.write(f"{wished}\n")
    return 1


def _report(error: BaseException, source: bytes) -> None:
    number = getattr(error, "errno", None)
    letter = b"m" if isinstance(error, MemoryError) else LETTER_BY_ERROR.get(number or 0, b"")
    if isinstance(error, RuntimeError) and str(error) == NO_THREAD:
        letter = b"p"
    if letter:
        os.write(REPORT, letter)
    import linecache
    import traceback

    text = source.decode("utf-8", "replace")
    linecache.cache["<string>"] = (len(text), None, text.splitlines(True), "<string>")
    # The first frame is this file's.
    traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)


def _wind_up(code: int) -> int:
    """Do what an interpreter does at its end."""
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        return code or NOT_FLUSHED
    return code


def judge(status: int, letter: bytes) -> tuple[int, str]:
    """Say what the status of a process that has ended means: exit code and outcome."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + number if number else os.WEXITSTATUS(status)
    if code and letter in LETTERS:
        return code, LETTERS[letter]
    # Where a shell tells of a command of its own that a signal has ended, that counts as well.
    if code == 128 + signal.SIGXFSZ:
        return code, "file_size"
    if code == 128 + signal.SIGXCPU:
        return code, "cpu_time"
    return code, "signalled" if number else "exited"
