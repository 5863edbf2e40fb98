"""What every backend of the sandbox must do, asked of its boxes. A new one is one more entry in BACKENDS.

Boxes of bubblewrap are real ones of this machine; those of the cluster are pods that a pretended one runs.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.files.roots import Roots
from retinue_sandbox.pod.backend import PodBackend
from retinue_sandbox.pod.manifest import Options
from retinue_sandbox.ports import (
    Backend,
    Box,
    Check,
    Command,
    Exit,
    Isolation,
    Limits,
    Outcome,
    Piece,
    Profile,
    Source,
    Work,
    Workspace,
)
from retinue_sandbox.refuse import RefuseBackend
from sandbox_cluster import SandboxCluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
UID_BASE = 700_000
Opened = Callable[[str], Workspace]
Eventually = Callable[..., Awaitable[object]]


@dataclass
class Ground:
    """A backend under test, and what it takes to open its boxes."""

    backend: Backend
    workspace: Opened

    async def open(self, tenant_id: str = "ten_a", profile: Profile | None = None) -> Box:
        workspace = self.workspace(tenant_id)
        try:
            return await self.backend.open(workspace, profile or Profile())
        finally:
            if workspace.fd >= 0:
                os.close(workspace.fd)


async def bwrap(folder: Path, stack: AsyncExitStack, *, broken: bool = False) -> Ground:
    uids = Uids(folder / ".users", UID_BASE, 1000)
    roots = Roots(folder, uids.of)
    stack.callback(roots.close)
    return Ground(BwrapBackend(folder, uids, bwrap_path="/nowhere/bwrap" if broken else ""), roots.open)


async def pod(folder: Path, stack: AsyncExitStack, *, broken: bool = False) -> Ground:
    cluster = SandboxCluster(folder)
    await cluster.start()
    stack.push_async_callback(cluster.stop)
    cluster.broken = broken
    backend = PodBackend(Options("retinue/box", "gvisor"), cluster.url, cluster.folder, "", "owner")
    return Ground(backend, lambda tenant_id: Workspace(tenant_id, -1, UID_BASE + len(tenant_id)))


async def refuse(folder: Path, stack: AsyncExitStack, *, broken: bool = True) -> Ground:
    check = Check("workspaces", False, "there are none", "name a folder of them")
    return Ground(RefuseBackend(check), lambda tenant_id: Workspace(tenant_id, -1, UID_BASE))


BACKENDS = {"bwrap": bwrap, "pod": pod}
UNFIT = {**BACKENDS, "refuse": refuse}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(BACKENDS))
async def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    async with AsyncExitStack() as stack:
        made = await BACKENDS[request.param](tmp_path_factory.mktemp("workspaces"), stack)
        stack.push_async_callback(made.backend.close)
        await made.backend.check()
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(ground: Ground) -> Box:
    """One that the tests share."""
    return await ground.open()


async def done(box: Box, work: Work, limits: Limits | None = None) -> tuple[bytes, bytes, Exit, int]:
    """Run something to its end: output, errors, the end, and how many bytes were left out."""
    said, omitted = {"stdout": b"", "stderr": b""}, 0
    async for item in box.run(work, limits or Limits()):
        if isinstance(item, Exit):
            return said["stdout"], said["stderr"], item, omitted
        said[item.stream] += item.data
        omitted += item.omitted_bytes
    raise AssertionError("no end was told")


def sh(script: str, **more: object) -> Command:
    return Command(["/bin/sh", "-c", script], **more)  # type: ignore[arg-type]


async def refusal(awaitable: Awaitable[object]) -> RetinueError:
    with pytest.raises(RetinueError) as caught:
        await awaitable
    return caught.value


async def alone(box: Box) -> bool:
    """Whether nothing runs in a box but the agent, and what it takes to have one."""
    look = (
        "import os\n"
        "for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):\n"
        "    if pid > 2 and pid != os.getpid():\n"
        "        print(pid, open(f'/proc/{pid}/stat').read().split()[2], open(f'/proc/{pid}/cmdline').read())"
    )
    out, *_ = await done(box, Source(look))
    found = [line for line in out.splitlines() if line.split()[1:2] != [b"Z"]]
    assert not found, found
    return True


async def test_a_self_test_says_what_it_looked_at(ground: Ground) -> None:
    found = await ground.backend.check()
    assert len({check.name for check in found}) == len(found) > 0
    assert all(check.name and check.detail for check in found)
    assert all(check.ok or check.remedy for check in found)
    assert ground.backend.isolation is not None
    assert ground.backend.isolation.at_least(Isolation.NAMESPACE)


@pytest.mark.parametrize("name", sorted(UNFIT))
async def test_box_or_refuse_where_none_can_be_had_it_says_why_and_opens_none(name: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        unfit = await UNFIT[name](tmp_path, stack, broken=True)
        stack.push_async_callback(unfit.backend.close)
        failed = next(check for check in await unfit.backend.check() if check.required and not check.ok)
        assert failed.remedy
        error = await refusal(unfit.open())
        assert (error.reason, error.code) == (Reason.SANDBOX_UNAVAILABLE, Code.FAILED_PRECONDITION)
        assert error.metadata == {"check": failed.name}


async def test_box_or_refuse_a_way_out_that_cannot_be_had_is_no_box_without_one(ground: Ground) -> None:
    error = await refusal(ground.open(profile=Profile(egress=("example.com:443",))))
    assert (error.reason, error.metadata) == (Reason.SANDBOX_UNAVAILABLE, {"check": "egress"})


async def test_no_cross_tenant_boxes_of_a_tenant_share_its_files_and_nothing_else(ground: Ground, box: Box) -> None:
    second, other = await ground.open(), await ground.open("ten_other")
    assert box.isolation == second.isolation == ground.backend.isolation
    hold = box.run(sh("echo kept > note; echo gone > /tmp/note; echo begun; exec sleep 1000"), Limits())
    assert isinstance(await anext(hold), Piece)
    out, *_ = await done(second, sh("cat note; ls /tmp; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))
    assert out.startswith(b"kept\n")
    assert b"note\n" not in out.removeprefix(b"kept\n")
    assert b"1000" not in out
    out, *_ = await done(other, sh("ls -A; ls -A /tmp; cat note ../*/*/note; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))
    assert b"cmdline" in out, "its own processes are seen"
    assert not [word for word in (b"kept", b"gone", b"1000") if word in out]
    await hold.aclose()
    await second.close()
    await other.close()


async def test_a_command_says_what_it_says_and_ends_as_it_ends(box: Box) -> None:
    out, err, end, _ = await done(box, sh('printf "%s" "$GREETING"; pwd >&2; exit 3', env={"GREETING": "hé"}))
    assert (out.decode(), err) == ("hé", b"/workspace\n")
    assert (end.outcome, end.exit_code, end.message) == (Outcome.EXITED, 3, "")
    assert end.memory_bytes > MIB


async def test_arguments_are_not_joined_and_input_ends(box: Box) -> None:
    data = os.urandom(300_000)
    out, _, end, _ = await done(box, Command(["cat", "-"], stdin=data))
    assert (out, end.exit_code) == (data, 0)
    out, *_ = await done(box, Command(["printf", "%s|", "a b", "$HOME", ";", ""]))
    assert out == b"a b|$HOME|;||"
    _, _, end, _ = await done(box, Command(["true"], stdin=data))
    assert end.exit_code == 0, "who does not read its input is left alone"
    out, *_ = await done(box, Command(["wc", "-c"]))
    assert out.strip() == b"0", "without input there is nothing to read"


async def test_what_is_no_program_ends_as_in_a_shell(box: Box) -> None:
    _, err, end, _ = await done(box, Command(["no-such-program"]))
    assert (end.outcome, end.exit_code) == (Outcome.EXITED, 127)
    assert b"no-such-program" in err
    _, _, end, _ = await done(box, Command(["/workspace"]))
    assert end.exit_code == 126
    await done(box, sh("mkdir -p bin; echo 'echo mine' > bin/tool; cp bin/tool bin/true"))
    path = {"PATH": "/no/such:bin:/usr/bin:/bin"}
    _, err, end, _ = await done(box, Command(["tool"], env=path))
    assert (end.exit_code, b"tool" in err) == (126, True)
    _, _, end, _ = await done(box, Command(["true"], env=path))
    assert end.exit_code == 0, "what cannot be executed does not stand in the way"
    await done(box, sh("sed -i '1i #!/bin/sh' bin/tool; chmod +x bin/tool"))
    assert (await done(box, Command(["tool"], env=path)))[0] == b"mine\n"


async def test_it_begins_in_its_folder_and_only_beneath_the_workspace(box: Box) -> None:
    await done(box, Command(["mkdir", "-p", "a/b"]))
    for cwd in ("a/b", "/workspace/a/b"):
        out, *_ = await done(box, Command(["pwd"], cwd=cwd))
        assert out == b"/workspace/a/b\n"
    for cwd in ("..", "a/../..", "/etc", "/workspace/../etc", "missing", "a\0b"):
        assert (await refusal(done(box, Command(["pwd"], cwd=cwd)))).metadata == {"field": "cwd"}


@pytest.mark.parametrize(
    ("work", "field"),
    [
        (Command([]), "argv"),
        (Command([""]), "argv"),
        (Command(["echo", "a\0b"]), "argv"),
        (Command(["env"], env={"A=B": "c"}), "env"),
        (Command(["env"], env={"": "c"}), "env"),
        (Command(["env"], env={"A": "\0"}), "env"),
        (Source("a\0b"), "source"),
    ],
)
async def test_what_no_process_can_be_given_is_refused(box: Box, work: Work, field: str) -> None:
    error = await refusal(done(box, work))
    assert (error.reason, error.metadata) == (Reason.FIELD_INVALID, {"field": field})


async def test_source_runs_as_an_interpreter_would_run_it(box: Box) -> None:
    await done(box, sh("echo 'x = 7' > child.py"))
    script = "import sys, child\nprint(__name__, sys.argv, child.x, open(0).read() == '')\nsys.exit(4)"
    out, err, end, _ = await done(box, Source(script))
    assert (out, err, end.exit_code) == (b"__main__ ['-c'] 7 True\n", b"", 4)
    for source, code in (("exit()", 0), ("raise SystemExit('no')", 1), ("import os; os._exit(9)", 9)):
        _, _, end, _ = await done(box, Source(source))
        assert (end.outcome, end.exit_code) == (Outcome.EXITED, code)
    out, *_ = await done(box, Source("import atexit, threading\natexit.register(print, 'last')\n"
                                     "threading.Timer(0.01, print, ['first']).start()"))  # fmt: skip
    assert out == b"first\nlast\n"


async def test_each_source_has_names_of_its_own_and_errors_show_their_line(box: Box) -> None:
    await done(box, Source("kept = 1\nimport sys\nsys.kept = 1"))
    _, err, end, _ = await done(box, Source("import sys\nprint(hasattr(sys, 'kept'))\nkept"))
    assert end.exit_code == 1
    lines = err.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1:3] == ['  File "<string>", line 3, in <module>', "    kept"]
    assert lines[-1] == "NameError: name 'kept' is not defined"
    _, err, _, _ = await done(box, Source("def f(:"))
    assert b"SyntaxError" in err
    assert b"agent" not in err


async def test_of_much_output_the_first_and_last_half_are_kept(box: Box) -> None:
    limits = Limits(output_bytes=1000)
    out, err, end, omitted = await done(box, sh("seq 1 5000; echo end >&2"), limits)
    whole = b"".join(b"%d\n" % n for n in range(1, 5001))
    assert out == whole[:500] + whole[-500:]
    assert (omitted, err, end.outcome) == (len(whole) - 1000, b"end\n", Outcome.EXITED)


async def test_bounded_output_without_end_ends_the_execution(box: Box) -> None:
    out, _, end, omitted = await done(box, Command(["yes"]), Limits(output_bytes=10_000))
    assert (end.outcome, end.exit_code, len(out)) == (Outcome.OUTPUT, 137, 10_000)
    assert 630_000 < omitted < 1_000_000
    assert end.message


LIMITS = {
    "time": (sh("sleep 1000 & exec sleep 1000"), Limits(wall_s=0.2), Outcome.WALL_TIME),
    "processor": (sh("while :; do :; done"), Limits(cpu_s=0.2), Outcome.CPU_TIME),
    "memory": (Source("x = []\nwhile True: x.append(bytearray(2 << 20))"), Limits(memory_bytes=64 * MIB),
               Outcome.MEMORY),
    "memory at once": (Source("bytearray(1 << 40)"), Limits(), Outcome.MEMORY),
    "processes": (sh("for n in $(seq 40); do sleep 9 & done; wait"), Limits(process_count=20), Outcome.PROCESSES),
    "file": (sh("dd if=/dev/zero of=large bs=4096 count=999 2>/dev/null; code=$?; rm large; exit $code"),
             Limits(file_bytes=MIB), Outcome.FILE_SIZE),
    "file of source": (Source("open('large', 'wb').write(bytes(2 << 20))"), Limits(file_bytes=MIB), Outcome.FILE_SIZE),
    "signal": (sh("kill -TERM $$"), Limits(), Outcome.SIGNALLED),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
async def test_bounded_each_limit_has_its_own_name_and_the_box_lives_on(
    ground: Ground, box: Box, name: str, eventually: Eventually
) -> None:
    if (ground.backend.name, name, os.geteuid()) == ("pod", "processes", 0):
        pytest.skip("root's processes are not counted, and a pretended pod is whoever pretends it")
    work, limits, outcome = LIMITS[name]
    _, err, end, _ = await done(box, work, limits)
    assert end.outcome == outcome, (err[-300:], end)
    assert end.exit_code
    assert bool(end.message) == (outcome != Outcome.SIGNALLED)
    await eventually(lambda: alone(box))


async def test_limits_hold_for_open_files_and_are_not_to_be_raised(box: Box) -> None:
    out, _, end, _ = await done(box, sh("ulimit -n; ulimit -Hn; ulimit -n 4096"), Limits(open_file_count=50))
    assert out.split() == [b"50", b"50"]
    assert end.exit_code


async def test_what_is_left_behind_ends_with_its_execution(box: Box, eventually: Eventually) -> None:
    hiding = "(setsid sh -c 'setsid sleep 1000 & sleep 1000' >/dev/null 2>&1 &) ; echo done"
    out, _, end, _ = await done(box, sh(hiding))
    assert (out, end.outcome) == (b"done\n", Outcome.EXITED)
    await eventually(lambda: alone(box))


async def test_leaving_kills_all_that_it_has_started_and_others_go_on(box: Box, eventually: Eventually) -> None:
    await done(box, sh("rm -f go; mkfifo go"))
    other = box.run(sh("echo begun; cat /workspace/go"), Limits())
    piece = await anext(other)
    assert isinstance(piece, Piece)
    items = box.run(sh("(setsid sleep 1000 &); sleep 1000 & echo begun; wait"), Limits())
    await anext(items)
    await items.aclose()
    await done(box, sh("echo gone > go"))
    rest = [item async for item in other]
    assert [item.data for item in rest if isinstance(item, Piece)] == [b"gone\n"]
    await eventually(lambda: alone(box))


async def test_many_at_once_do_not_mix_what_they_say(box: Box) -> None:
    found = await asyncio.gather(*(done(box, sh(f"echo {n}; cat", stdin=b"%d" % n)) for n in range(12)))
    assert [out for out, *_ in found] == [b"%d\n%d" % (n, n) for n in range(12)]


async def test_a_box_that_ends_ends_what_runs_in_it_with_a_name(ground: Ground) -> None:
    box = await ground.open()
    items = box.run(sh("echo begun; sleep 1000"), Limits())
    await anext(items)
    rest = asyncio.ensure_future(anext(items))
    await box.close()
    assert box.lost.is_set()
    for awaitable in (rest, done(box, sh("echo again"))):
        error = await refusal(awaitable)
        assert (error.reason, error.metadata) == (Reason.SANDBOX_UNAVAILABLE, {"check": "box_lost"})
    await box.close()


async def test_the_end_of_a_backend_is_that_of_its_boxes_and_nothing_is_held_then(tmp_path: Path) -> None:
    for name, make in BACKENDS.items():
        folder = tmp_path / name
        folder.mkdir(mode=0o755)
        async with AsyncExitStack() as stack:
            made = await make(folder, stack)
            await made.backend.check()
            first, second = await made.open(), await made.open("ten_other")
            assert await made.backend.held_bytes("ten_a") == 0
            await made.backend.close()
            async with asyncio.timeout(10):
                await asyncio.gather(first.lost.wait(), second.lost.wait())
            await made.backend.close()
