"""The agent in a real box: what runs, how it ends, and what is left of it. All tests share one box."""

import asyncio
import os
from pathlib import Path

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.ports import Command, Limits, Outcome, Piece, Source

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


def sh(script, **more):
    return Command(["/bin/sh", "-c", script], **more)


async def test_a_command_says_what_it_says_and_ends_as_it_ends(box, collect):
    out, err, end, _ = await collect(box, sh('printf "%s" "$GREETING"; pwd >&2; exit 3', env={"GREETING": "hé"}))
    assert (out.decode(), err) == ("hé", b"/workspace\n")
    assert (end.outcome, end.exit_code, end.message) == (Outcome.EXITED, 3, "")
    assert end.memory_bytes > MIB


async def test_arguments_are_not_joined_and_input_ends(box, collect):
    data = os.urandom(300_000)
    out, _, end, _ = await collect(box, Command(["cat", "-"], stdin=data))
    assert (out, end.exit_code) == (data, 0)
    out, *_ = await collect(box, Command(["printf", "%s|", "a b", "$HOME", ";", ""]))
    assert out == b"a b|$HOME|;||"
    _, _, end, _ = await collect(box, Command(["true"], stdin=data))
    assert end.exit_code == 0, "who does not read its input is left alone"
    out, *_ = await collect(box, Command(["wc", "-c"]))
    assert out.strip() == b"0", "without input there is nothing to read"


async def test_what_is_no_program_ends_as_in_a_shell(box, collect):
    _, err, end, _ = await collect(box, Command(["no-such-program"]))
    assert (end.outcome, end.exit_code) == (Outcome.EXITED, 127)
    assert b"no-such-program" in err
    _, _, end, _ = await collect(box, Command(["/workspace"]))
    assert end.exit_code == 126


async def test_it_begins_in_its_folder_and_only_beneath_the_workspace(box, collect):
    await collect(box, Command(["mkdir", "-p", "a/b"]))
    for cwd in ("a/b", "/workspace/a/b"):
        out, *_ = await collect(box, Command(["pwd"], cwd=cwd))
        assert out == b"/workspace/a/b\n"
    for cwd in ("..", "a/../..", "/etc", "/workspace/../etc", "missing", "a\0b"):
        with pytest.raises(RetinueError) as caught:
            await collect(box, Command(["pwd"], cwd=cwd))
        assert caught.value.metadata == {"field": "cwd"}


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
async def test_what_no_process_can_be_given_is_refused(box, collect, work, field):
    with pytest.raises(RetinueError) as caught:
        await collect(box, work)
    assert (caught.value.reason, caught.value.metadata) == (Reason.FIELD_INVALID, {"field": field})


async def test_source_runs_as_an_interpreter_would_run_it(box, collect):
    await collect(box, sh("echo 'x = 7' > child.py"))
    script = "import sys, child\nprint(__name__, sys.argv, child.x, open(0).read() == '')\nsys.exit(4)"
    out, err, end, _ = await collect(box, Source(script))
    assert (out, err, end.exit_code) == (b"__main__ ['-c'] 7 True\n", b"", 4)
    for source, code in (("exit()", 0), ("raise SystemExit('no')", 1), ("import os; os._exit(9)", 9)):
        _, _, end, _ = await collect(box, Source(source))
        assert (end.outcome, end.exit_code) == (Outcome.EXITED, code)
    out, *_ = await collect(box, Source("import atexit, threading\natexit.register(print, 'last')\n"
                                        "threading.Timer(0.01, print, ['first']).start()"))  # fmt: skip
    assert out == b"first\nlast\n"


async def test_each_source_has_names_of_its_own_and_errors_show_their_line(box, collect):
    await collect(box, Source("kept = 1\nimport sys\nsys.kept = 1"))
    _, err, end, _ = await collect(box, Source("import sys\nprint(hasattr(sys, 'kept'))\nkept"))
    assert end.exit_code == 1
    lines = err.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1:3] == ['  File "<string>", line 3, in <module>', "    kept"]
    assert lines[-1] == "NameError: name 'kept' is not defined"
    _, err, _, _ = await collect(box, Source("def f(:"))
    assert b"SyntaxError" in err
    assert b"agent" not in err


async def test_of_much_output_the_first_and_last_half_are_kept(box, collect):
    limits = Limits(output_bytes=1000)
    out, err, end, omitted = await collect(box, sh("seq 1 5000; echo end >&2"), limits)
    whole = b"".join(b"%d\n" % n for n in range(1, 5001))
    assert out == whole[:500] + whole[-500:]
    assert (omitted, err, end.outcome) == (len(whole) - 1000, b"end\n", Outcome.EXITED)


async def test_output_without_end_ends_the_execution_bounded(box, collect):
    out, _, end, omitted = await collect(box, Command(["yes"]), Limits(output_bytes=10_000))
    assert (end.outcome, end.exit_code, len(out)) == (Outcome.OUTPUT, 137, 10_000)
    assert 630_000 < omitted < 1_000_000
    assert end.message


async def test_one_who_does_not_read_stops_the_pipe_and_not_the_others(box, collect):
    items = box.run(Command(["head", "-c", "3000000", "/dev/zero"]), Limits(output_bytes=4 * MIB))
    first = await anext(items)
    out, *_ = await collect(box, sh("echo others"))
    assert out == b"others\n"
    call = next(iter(box._calls.values()))
    assert call.held < 400_000, "what is not read is not held here"
    size = len(first.data)
    async for item in items:
        size += len(item.data) if isinstance(item, Piece) else 0
    assert size == 3_000_000


async def test_time_is_over_for_all_that_it_has_started(box, collect):
    _, _, end, _ = await collect(box, sh("sleep 1000 & exec sleep 1000"), Limits(wall_s=0.2))
    assert (end.outcome, end.exit_code, end.message) == (Outcome.WALL_TIME, 137, "It took longer than 0.2 s.")
    assert await only_the_agent(box, collect)


async def test_processors_memory_processes_and_files_have_limits_of_their_own_name(box, collect):
    spin = "while :; do :; done"
    hog = "x = []\nwhile True: x.append(bytearray(2 << 20))"
    fork = "import os, time\nfor _ in range(50):\n    if not os.fork(): time.sleep(9)"
    file = "dd if=/dev/zero of=large bs=4096 count=999 2>/dev/null; code=$?; rm large; exit $code"
    for work, limits, outcome in (
        (sh(spin), Limits(cpu_s=1), Outcome.CPU_TIME),
        (sh(f"({spin}) & ({spin}) & wait"), Limits(cpu_s=1), Outcome.CPU_TIME),
        (Source(hog), Limits(memory_bytes=96 * MIB), Outcome.MEMORY),
        (Source("bytearray(1 << 40)"), Limits(), Outcome.MEMORY),
        (Source(fork), Limits(process_count=20), Outcome.PROCESSES),
        (sh("for n in $(seq 40); do sleep 9 & done; wait"), Limits(process_count=20), Outcome.PROCESSES),
        (sh(file), Limits(file_bytes=MIB), Outcome.FILE_SIZE),
        (Source("open('large', 'wb').write(bytes(2 << 20))"), Limits(file_bytes=MIB), Outcome.FILE_SIZE),
        (Source("open('/tmp/large', 'wb').write(bytes(70 << 20))"), Limits(file_bytes=200 * MIB), Outcome.DISK),
        (sh("kill -TERM $$"), Limits(), Outcome.SIGNALLED),
    ):
        _, err, end, _ = await collect(box, work, limits)
        assert end.outcome == outcome, (work, err[-300:], end)
        assert end.exit_code
        assert bool(end.message) == (outcome != Outcome.SIGNALLED)
    await collect(box, sh("rm -f /tmp/large"))
    assert await only_the_agent(box, collect), "the box lives on"


async def test_limits_hold_for_open_files_and_are_not_to_be_raised(box, collect):
    out, _, end, _ = await collect(box, sh("ulimit -n; ulimit -Hn; ulimit -n 4096"), Limits(open_file_count=50))
    assert out.split() == [b"50", b"50"]
    assert end.exit_code


async def test_what_is_left_behind_ends_with_its_execution(box, collect):
    hiding = "(setsid sh -c 'setsid sleep 1000 & sleep 1000' >/dev/null 2>&1 &) ; sleep 0.05; echo done"
    out, _, end, _ = await collect(box, sh(hiding))
    assert (out, end.outcome) == (b"done\n", Outcome.EXITED)
    assert end.duration_ms < 5000
    assert await only_the_agent(box, collect)


async def test_leaving_kills_all_that_it_has_started_and_others_go_on(box, collect, eventually):
    other = box.run(sh("echo begun; cat /workspace/go"), Limits())
    await collect(box, sh("rm -f go; mkfifo go"))
    assert (await anext(other)).data == b"begun\n"
    items = box.run(sh("(setsid sleep 1000 &); sleep 1000 & echo begun; wait"), Limits())
    assert (await anext(items)).data == b"begun\n"
    await items.aclose()
    assert not [line for line in await processes(box, collect) if b"sleep 1000" in line and b"sh -c" not in line]
    await collect(box, sh("echo gone > go"))
    assert [item.data async for item in other if isinstance(item, Piece)] == [b"gone\n"]
    assert await only_the_agent(box, collect)


async def test_many_at_once_do_not_mix_what_they_say(box, collect):
    found = await asyncio.gather(*(collect(box, sh(f"echo {n}; cat", stdin=b"%d" % n)) for n in range(12)))
    assert [out for out, *_ in found] == [b"%d\n%d" % (n, n) for n in range(12)]


async def test_the_agent_cannot_be_killed_looked_into_or_spoken_to(box, collect):
    script = """
import os, signal
for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGUSR1):
    os.kill(1, number)
for path in ('/proc/1/mem', '/proc/1/environ', '/proc/1/fd/0', '/proc/1/maps'):
    try:
        print(open(path, 'rb').read(10))
    except OSError as error:
        print('closed')
print([name for name in os.listdir('/proc/self/fd') if int(name) > 4])
"""
    out, _, end, _ = await collect(box, Source(script))
    assert out.split() == [b"closed"] * 4 + [b"[]"]
    assert end.exit_code == 0
    assert not box.lost.is_set()


async def processes(box, collect):
    """What runs in the box besides the agent and this look."""
    out, *_ = await collect(
        box,
        Source(
            "import os\n"
            "for name in os.listdir('/proc'):\n"
            "    if name.isdigit() and int(name) not in (1, os.getpid()):\n"
            "        print(open(f'/proc/{name}/stat').read().split()[2], open(f'/proc/{name}/cmdline').read())"
        ),
    )
    return [line.replace(b"\0", b" ") for line in out.splitlines() if not line.startswith(b"Z")]


async def only_the_agent(box, collect):
    found = await processes(box, collect)
    assert not found, found
    return True


async def test_a_box_that_ends_ends_what_runs_in_it_with_a_name(ground, collect):
    box = await ground.open()
    items = box.run(sh("echo begun; sleep 1000"), Limits())
    await anext(items)
    pid = box._launched.pid
    rest = asyncio.create_task(anext(items))
    await box.close()
    with pytest.raises(RetinueError) as caught:
        await rest
    assert (caught.value.reason, caught.value.metadata) == (Reason.SANDBOX_UNAVAILABLE, {"check": "box_lost"})
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RetinueError) as caught:
        await collect(box, sh("echo again"))
    assert caught.value.metadata == {"check": "box_lost"}
    await box.close()
