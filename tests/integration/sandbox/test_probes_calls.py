"""Attacks by what a box uses up, and on the service's own calls for files."""

import asyncio
import contextlib
import stat
from typing import Any

import pytest
from probing import PRELUDE, Besieged, Probe, seconds
from retinue_kit.errors import Reason, RetinueError

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1 << 20
MEMORY = {"memory_size_bytes": 64 * MIB}
FOREVER = "time.sleep(1000)"
FEW = {"process_count": 20}
HELD_TIMEOUT_S = 10.0
"""Of a call that takes milliseconds, on a machine that does ten other things."""

RESOURCES = [
    Probe("memory", "x = []\nwhile True: x.append(bytearray(MIB := 1 << 20))", ".*", "memory", MEMORY),
    Probe("memory at once", "bytearray(1 << 40)", ".*MemoryError\n", "memory", MEMORY),
    Probe("memory that is shared", "import mmap\nx = mmap.mmap(-1, 96 << 20)\n"
          f"for at in range(0, len(x), 4096): x[at] = 1\n{FOREVER}", "", "memory", MEMORY),
    Probe("memory of several processes", "for _ in range(4):\n if not os.fork():\n  x = bytearray(b'x' * (30 << 20))\n"
          f"  {FOREVER}\n{FOREVER}", "", "memory", MEMORY),
    Probe("memory that outlives whoever made it", "size = 96 << 20\nC = _C\nC.shmat.restype = ctypes.c_void_p\n"
          "one = C.shmget(0, size, 0o1600)\nat = C.shmat(one, None, 0)\nctypes.memset(at, 1, size)\n"
          f"C.shmdt(ctypes.c_void_p(at))\n{FOREVER}", "", "memory", MEMORY, one_shot=True),
    Probe("memory of /tmp", "try: write('/tmp/x', 'x' * (70 << 20))\nfinally: os.unlink('/tmp/x')",
          ".*No space.*", "disk", {"file_size_bytes": 200 * MIB}),
    Probe("memory of /dev/shm", "try: write('/dev/shm/x', 'x' * (17 << 20))\n"
          "finally: os.unlink('/dev/shm/x')", ".*No space.*", "disk"),
    Probe("memory that is never swapped", "print(_C.mlock(ctypes.create_string_buffer(1 << 20), 1 << 20))", "-1\n"),
    Probe("memory that is a file without a name", "tell(os.memfd_create, 'x')", "ENOSYS\n"),
    Probe("a processor", "$ while :; do :; done", "", "cpu_time", {"cpu_time": seconds(0.2)}),
    Probe("processors by many who are short-lived", "while True:\n pid = os.fork()\n if not pid:\n"
          "  sum(range(1 << 18))\n  os._exit(0)\n os.waitpid(pid, 0)", "", "cpu_time", {"cpu_time": seconds(0.2)}),
    Probe("processors by many who are nobody's", "$ for n in 1 2 3; do (setsid sh -c 'while :; do :; done' &); done; "
          "sleep 1000", "", "cpu_time", {"cpu_time": seconds(0.3)}),
    Probe("time", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER, "", "wall_time",
          {"wall_time": seconds(0.2)}),
    Probe("time by standing still", "os.kill(os.getpid(), signal.SIGSTOP)", "", "wall_time",
          {"wall_time": seconds(0.2)}),
    Probe("processes", "for _ in range(50):\n if not os.fork(): time.sleep(1000)", ".*", "processes", FEW),
    Probe("processes of a shell", "$ for n in $(seq 50); do sleep 1000 & done; wait", ".*", "processes", FEW),
    Probe("processes that fork and end", "while True:\n if os.fork(): os._exit(0)", "", "exited", FEW),
    Probe("processes that nobody waits for", "while True:\n if not os.fork(): os._exit(0)", ".*", "processes", FEW),
    Probe("threads", "import threading\nfor _ in range(50):\n"
          " threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()", ".*can't start new thread\n",
          "processes", FEW),
    Probe("output", "$ exec yes", "(y\n){5000}", "output", {"output_size_bytes": 10_000}),
    Probe("output of errors without a line's end", "while True: os.write(2, b'x' * 65536)", "x{10000}", "output",
          {"output_size_bytes": 10_000}),
    Probe("a file", "write('x', 'x' * (2 << 20))", ".*", "file_size", {"file_size_bytes": MIB}),
    Probe("a file that is a hole", "$ exec truncate -s 1T x", "", "file_size"),
    Probe("descriptors", "x = [os.open('/dev/null', 0) for _ in range(300)]", ".*Too many open files.*", "exited",
          {"open_file_count": 100}),
    Probe("queues of messages",
          "print(_C.syscall(240 if os.uname().machine == 'x86_64' else 180, b'x', 0o102, 0o600, 0))", "-1\n"),
    Probe("pipes", "import fcntl\nx = [os.pipe() for _ in range(100)]\n"
          "def widen():\n for _, end in x: fcntl.fcntl(end, 1031, 1 << 20)\ntell(widen)", "EPERM\n"),
]  # fmt: skip


@pytest.mark.parametrize("probe", RESOURCES, ids=str)
async def test_bounded_whatever_is_used_up_ends_with_its_name(besieged: Besieged, probe: Probe) -> None:
    await besieged.try_out(probe)


async def test_nothing_outlives_its_execution_whatever_it_does_to_leave_it(besieged: Besieged, eventually: Any) -> None:
    hide = """
import subprocess
_C.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
for depth in range(3):
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 32):
            if number not in (9, 17, 19):
                signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            os.closerange(0, 100)
            os.execve("/bin/sh", ["kworker"] + ["-c", "while :; do sleep 1000; done"], {})
        os._exit(0)
time.sleep(0.05)
"""
    _, end = await besieged.python(PRELUDE + hide)
    assert (end.outcome, end.exit_code) == ("exited", 0)

    async def only_the_agent_and_whoever_looks() -> bool:
        text, _ = await besieged.python("import os\nprint(sum(name.isdigit() for name in os.listdir('/proc')))")
        return text == "2\n"

    await eventually(only_the_agent_and_whoever_looks)


SPILLS = {
    "bytes": ("for n in range(6):\n with open(f'f{n}', 'wb') as file: os.posix_fallocate(file.fileno(), 0, 50 << 20)",
              "more than 256 MiB"),
    "depth": ("for n in range(80):\n os.mkdir('d')\n os.chdir('d')", "deep within one another"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPILLS)
async def test_bounded_a_tenant_that_fills_the_disk_is_stopped_until_it_makes_room(
    besieged: Besieged, kind: str
) -> None:
    source, words = SPILLS[kind]
    tenant = f"ten_{kind}"
    _, end = await besieged.python(f"{PRELUDE}os.mkdir('spill')\nos.chdir('spill')\n{source}\n{FOREVER}", tenant=tenant)
    assert (end.outcome, words in end.message) == ("disk", True), end
    assert await refusal(besieged.exec("true", tenant=tenant)) == Reason.QUOTA_EXCEEDED
    assert await refusal(besieged.exec("true", tenant=tenant, session="ses_b")) == Reason.QUOTA_EXCEEDED
    assert (await besieged.exec("echo", "on"))[0] == "on\n", "others go on"
    assert (await besieged.file("DeleteFile", "spill", tenant, recursive=True)).removed_count > 5
    assert (await besieged.exec("ls", tenant=tenant))[0] == ""


async def test_bounded_files_without_a_name_fill_the_disk_as_well(besieged: Besieged, eventually: Any) -> None:
    source = """
for number in range(6):
    held = os.open("gone", os.O_RDWR | os.O_CREAT)
    os.unlink("gone")
    os.posix_fallocate(held, 0, 50 << 20)
"""
    _, end = await besieged.python(f"{PRELUDE}{source}{FOREVER}", tenant="ten_nameless")
    assert (end.outcome, "more than 256 MiB" in end.message) == ("disk", True), end

    async def there_is_room_again() -> bool:
        with contextlib.suppress(RetinueError):
            return bool((await besieged.exec("true", tenant="ten_nameless"))[1].exit_code == 0)
        return False

    await eventually(there_is_room_again)


async def refusal(awaitable: Any) -> Reason:
    with pytest.raises(RetinueError) as caught:
        await awaitable
    return caught.value.reason


BAD, ABSENT, LARGE = Reason.FIELD_INVALID, Reason.FILE_NOT_FOUND, Reason.BODY_TOO_LARGE
READ, WRITE, EDIT, LIST, DELETE = "ReadFile", "WriteFile", "EditFile", "ListFiles", "DeleteFile"
EVERY = {
    READ: {},
    WRITE: {"data": b"x"},
    EDIT: {"old_text": "a", "new_text": "x"},
    LIST: {},
    DELETE: {"recursive": True},
}

PATHS: dict[str, tuple[str, str, dict[str, Reason]]] = {
    "the folder above": ("", "../../ten_b/files/secret", dict.fromkeys(EVERY, BAD)),
    "the folder above by a detour": ("mkdir -p a", "a/../../../ten_b/files/secret", dict.fromkeys(EVERY, BAD)),
    "a path of the machine": ("", "@FILE@", dict.fromkeys(EVERY, BAD)),
    "a path with NUL": ("", "a\0/../../ten_b", dict.fromkeys(EVERY, BAD)),
    "another way to write it": ("", "..%2f..%2ften_b/files/secret", dict.fromkeys((READ, EDIT, LIST, DELETE), ABSENT)),
    "a link to a file": ("ln -s @FILE@ to-file", "to-file", dict.fromkeys((READ, WRITE, EDIT, LIST), BAD)),
    "a link to the root": ("ln -s / to-root", "to-root@FILE@", dict.fromkeys(EVERY, BAD)),
    "a link to another tenant": ("ln -s @HOME@ to-home", "to-home/secret", dict.fromkeys(EVERY, BAD)),
    "a link that another tenant's files have as theirs": ("ln -s ../../ten_b/files up", "up/secret",
                                                          dict.fromkeys(EVERY, BAD)),
    "a link to where nothing is": ("ln -s @MADE@ to-made", "to-made", dict.fromkeys((READ, WRITE, EDIT, LIST), BAD)),
    "a link of the kernel's": ("ln -s /proc/self/root magic", "magic@FILE@", dict.fromkeys(EVERY, BAD)),
    "a link to itself": ("ln -s round round", "round", dict.fromkeys((READ, WRITE, EDIT, LIST), BAD)),
    "a pipe that nobody writes": ("mkfifo pipe", "pipe", dict.fromkeys((READ, WRITE, EDIT, LIST), BAD)),
    "a socket": ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"listening\")'", "listening",
                 dict.fromkeys((READ, WRITE, EDIT, LIST), BAD)),
    "a file that is a hole": ("truncate -s 60M hole", "hole", dict.fromkeys((READ, EDIT), LARGE)),
    "a name that is the service's": ("touch .retinue-staged-x", ".retinue-staged-x", dict.fromkeys(EVERY, BAD)),
    "a name that is too long": ("", "x" * 300, dict.fromkeys(EVERY, BAD)),
    "a path that is too long": ("", "/".join(["x" * 99] * 45), dict.fromkeys(EVERY, BAD)),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
async def test_no_cross_tenant_no_path_leads_out_of_the_tenants_files(besieged: Besieged, name: str) -> None:
    prepare, path, refusals = PATHS[name]
    if prepare:
        _, end = await besieged.exec("sh", "-c", besieged.filled(prepare))
        assert end.exit_code == 0
    for call, reason in refusals.items():
        found = await refusal(besieged.file(call, besieged.filled(path), **EVERY[call]))
        assert (call, found) == (call, reason)
    if "DeleteFile" not in refusals:
        await besieged.file(DELETE, path)
    assert besieged.untouched()


@pytest.mark.parametrize(
    "fields",
    [
        {"root": "../ten_b/files"},
        {"root": "contacts"},
        {"root": ".users"},
        {"tenant": "../home"},
        {"tenant": "ten_a/../ten_b"},
        {"tenant": ".users"},
        {"tenant": "ten_b\0"},
        {"tenant": "ten_b/files"},
    ],
    ids=str,
)
async def test_no_cross_tenant_neither_a_root_nor_a_tenant_is_a_path(
    besieged: Besieged, fields: dict[str, str]
) -> None:
    for call, more in EVERY.items():
        assert await refusal(besieged.file(call, "secret", **{**more, **fields})) == BAD
    if "tenant" in fields:
        assert await refusal(besieged.exec("true", tenant=fields["tenant"])) == BAD
    assert besieged.untouched()


@pytest.mark.parametrize(
    ("prepare", "cwd"),
    [("", ".."), ("", "/etc"), ("", "/workspace/../etc"), ("mkdir -p a", "a/../.."), ("", "a\0b"), ("", "/proc/1/cwd"),
     ("ln -s @HOME@ gone; true", "gone")],
)  # fmt: skip
async def test_no_command_begins_outside_of_the_workspace(besieged: Besieged, prepare: str, cwd: str) -> None:
    await besieged.exec("sh", "-c", besieged.filled(prepare or "true"))
    assert await refusal(besieged.exec("ls", cwd=cwd)) == BAD


async def test_what_is_written_over_a_program_is_no_program_of_the_tenants_user(besieged: Besieged) -> None:
    await besieged.exec("sh", "-c", "cp /usr/bin/id id; chmod 6777 id")
    await besieged.file(WRITE, "id", data=b"#!/bin/sh\n")
    found = besieged.disk("id").stat()
    assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID)
    assert found.st_uid == besieged.disk().stat().st_uid


async def test_names_that_no_text_can_hold_are_listed_and_removed(besieged: Besieged) -> None:
    names = "b'\\xff', b'\\n', b'\\xed\\xa0\\x80', b'\\x1b[2J', b'-rf', '\u202e'.encode()"
    _, end = await besieged.python(f"import os\nos.mkdir('odd')\nfor name in ({names}):\n os.mkdir(b'odd/' + name)")
    assert end.exit_code == 0
    assert len((await besieged.file(LIST, "odd")).files) == 6
    assert (await besieged.file(DELETE, "odd", recursive=True)).removed_count == 7


async def test_a_file_that_a_box_holds_on_to_is_not_waited_for(besieged: Besieged, eventually: Any) -> None:
    """Whoever opens a leased file waits for three quarters of a minute, by default."""
    hold = """
import fcntl
signal.signal(signal.SIGIO, lambda *_: None)
held = os.open("held", os.O_RDWR | os.O_CREAT)
print(fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK), flush=True)
"""
    holding = besieged.begin("python3", "-c", f"{PRELUDE}{hold}{FOREVER}")
    assert (await anext(holding)).output.data == b"0\n"
    for call in (READ, EDIT, WRITE):
        async with asyncio.timeout(HELD_TIMEOUT_S):
            with contextlib.suppress(RetinueError):
                await besieged.file(call, "held", **EVERY[call])
    await holding.aclose()  # type: ignore[attr-defined]

    async def written() -> bool:
        with contextlib.suppress(RetinueError):  # until whoever held it is gone
            return bool((await besieged.file(WRITE, "held", data=b"mine")).info.size_bytes == 4)
        return False

    await eventually(written)
