"""The agent in a real box: what it holds, and what it leaves. What all boxes promise is asked in tests/contract."""

import pytest
from retinue_sandbox.ports import Command, Limits, Piece, Source

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


def sh(script, **more):
    return Command(["/bin/sh", "-c", script], **more)


async def test_files_without_a_name_are_seen_while_something_holds_them(ground, collect):
    box = await ground.open("ten_held")
    hold = """
import mmap, os, time
for number in range(2):
    fd = os.open("gone", os.O_RDWR | os.O_CREAT)
    os.unlink("gone")
    os.write(fd, b"x" * (1 << 20))
kept = mmap.mmap(fd, 1 << 20)
os.close(fd)
print("held", flush=True)
time.sleep(1000)
"""
    items = box.run(Command(["python3", "-c", hold]), Limits())
    assert (await anext(items)).data == b"held\n"
    assert await ground.backend.held_bytes("ten_held") == 2 << 20, "one is open, one is mapped"
    assert await ground.backend.held_bytes("ten_a") == 0
    await items.aclose()
    assert await ground.backend.held_bytes("ten_held") == 0


async def test_shared_segments_end_with_who_has_made_them_and_other_memory_of_the_kernel_is_not_to_be_had(box, collect):
    make = "import ctypes\nlibc = ctypes.CDLL(None)\nprint([libc.shmget(0, 4096, 0o1600) for _ in range(100)][-1] >= 0)"
    count = "print(len(open('/proc/sysvipc/shm').readlines()))"
    assert (await collect(box, Source(f"{make}\n{count}")))[0] == b"True\n101\n"
    assert (await collect(box, Source(count)))[0] == b"1\n"
    tries = "libc.msgget(0, 0o1600), libc.semget(0, 1, 0o1600), libc.memfd_create(b'x', 0)"
    assert (await collect(box, Source(f"{make}\nprint(*({tries}))")))[0] == b"True\n-1 -1 -1\n"


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
