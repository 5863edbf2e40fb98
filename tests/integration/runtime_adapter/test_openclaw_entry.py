"""What a container of an instance runs: the relay in front of the gateway, with a gateway of a few lines behind it."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from retinue_runtime_adapter.openclaw import backends

ENTRY = Path(backends.__path__[0]) / "entry.mjs"
TOKEN = "the-gateways-own"
CONFIG = json.dumps({"gateway": {"auth": {"token": TOKEN}}}).encode()
EXIT_TROUBLE = 70
CONNECTIONS_MAX = 64

GATEWAY = """
import { appendFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
const folder = process.env.OPENCLAW_STATE_DIR;
const { argv, execArgv, env } = process;
writeFileSync(`${folder}/environment`, JSON.stringify({ ...env, argv, execArgv }));
process.on("SIGTERM", () => process.exit(7));
console.log("first words");
if (process.env.OPENCLAW_TEST === "broken") process.exit(3);
const flood = (socket) => {
  let room = true;
  while (room) {
    room = socket.write(Buffer.alloc(65536));
    appendFileSync(`${folder}/flood`, ".");
  }
};
createServer({ allowHalfOpen: true }, (socket) => {
  socket.on("error", () => {});
  socket.once("data", (first) => {
    if (first.toString() === "die") process.kill(process.pid, "SIGKILL");
    if (first.toString() === "fail") { console.log("a tenant's words"); process.exit(9); }
    if (first.toString() === "flood") { socket.on("drain", () => flood(socket)); return flood(socket); }
    socket.write(first);
    socket.pipe(socket);
  });
}).listen(Number(process.argv.at(-1)), "127.0.0.1");
"""


class Running:
    """An entry and what it says."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.port = 0
        self.said = ""

    async def tell(self, text: bytes) -> None:
        """Write to its standard input, and leave it open."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        await self.process.stdin.drain()

    async def listening(self) -> None:
        """Read until it says where."""
        assert self.process.stderr is not None
        while "listening" not in self.said:
            line = (await self.process.stderr.readline()).decode()
            assert line, self.said
            self.said += line
        self.port = int(self.said.split()[-1])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def echoes(self, text: bytes = b"hello") -> bool:
        """Whether the gateway answers through the relay."""
        reader, writer = await self.connect()
        try:
            writer.write(text)
            return await reader.readexactly(len(text)) == text
        except (OSError, asyncio.IncompleteReadError):
            return False
        finally:
            writer.close()

    async def over(self) -> int:
        """Wait for the end."""
        assert self.process.stderr is not None
        self.said += (await self.process.stderr.read()).decode()
        return await self.process.wait()


@pytest_asyncio.fixture
async def enter(openclaw_dir: Path, run_dir: Path) -> AsyncIterator[Callable[..., Any]]:
    """Answer a starter of entries; variables that are None are left out."""
    (run_dir / "gateway.mjs").write_text(GATEWAY)
    started: list[Running] = []

    async def start(**variables: str | None) -> Running:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = run_dir / "state" / "ins_1"
        environ: dict[str, str | None] = {
            "PATH": os.defpath,
            "RETINUE_STATE_DIR": str(folder),
            "RETINUE_RELAY_HOST": "127.0.0.1",
            "RETINUE_RELAY_PORT": "0",
            "RETINUE_GATEWAY_PORT": str(port),
            "RETINUE_HEAP_MIB": "128",
            "RETINUE_OPENCLAW": str(run_dir / "gateway.mjs"),
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            openclaw_dir / "node",
            ENTRY,
            env={name: value for name, value in environ.items() if value is not None},
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(Running(process, folder))
        return started[-1]

    yield start
    for running in started:
        with suppress(ProcessLookupError):
            running.process.terminate()
        await running.over()


@pytest_asyncio.fixture
async def running(enter: Callable[..., Any], eventually: Callable[..., Any]) -> Running:
    """Start one that serves."""
    made: Running = await enter()
    await made.tell(b"%d\n" % len(CONFIG) + CONFIG)
    await made.listening()
    await eventually(made.echoes)
    return made


async def test_what_is_said_comes_back_whole_after_one_side_has_said_all(running) -> None:
    sent = os.urandom(4 << 20)
    reader, writer = await running.connect()

    async def say() -> None:
        writer.write(sent)
        await writer.drain()
        writer.write_eof()

    _, received = await asyncio.gather(say(), reader.read(-1))
    assert received == sent
    writer.close()


async def test_the_token_is_in_a_file_of_its_own_and_nowhere_else(running) -> None:
    path = running.folder / "openclaw.json"
    assert path.read_bytes() == CONFIG
    assert path.stat().st_mode & 0o777 == 0o600
    assert running.folder.stat().st_mode & 0o777 == 0o700
    seen = json.loads((running.folder / "environment").read_text())
    assert seen["OPENCLAW_CONFIG_PATH"] == str(path)
    assert seen["OPENCLAW_STATE_DIR"] == seen["HOME"] == str(running.folder)
    assert "--max-old-space-size=128" in seen["execArgv"]
    assert not [name for name in seen if name.startswith("RETINUE_")]
    of_entry = [Path(f"/proc/{running.process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    assert TOKEN not in json.dumps(seen)
    assert TOKEN.encode() not in b"".join(of_entry)


async def test_it_is_asked_to_end_and_ends_as_the_gateway_does(running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert await running.over() == 7


async def test_a_gateway_that_is_killed_is_told_by_its_signal(running) -> None:
    _, writer = await running.connect()
    writer.write(b"die")
    assert await running.over() == 128 + signal.SIGKILL
    writer.close()


async def test_what_a_gateway_says_once_it_serves_goes_nowhere(running) -> None:
    _, writer = await running.connect()
    writer.write(b"fail")
    assert await running.over() == 9
    assert "words" not in running.said
    writer.close()


async def test_why_a_gateway_did_not_start_is_told(enter) -> None:
    made = await enter(OPENCLAW_TEST="broken")
    await made.tell(b"%d\n" % len(CONFIG) + CONFIG)
    assert await made.over() == 3
    assert "first words" in made.said


async def test_the_configuration_may_be_a_file(enter, run_dir, eventually) -> None:
    (run_dir / "config.json").write_bytes(CONFIG)
    made = await enter(RETINUE_CONFIG_FILE=str(run_dir / "config.json"))
    await made.listening()
    await eventually(made.echoes)
    assert (made.folder / "openclaw.json").read_bytes() == CONFIG


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (b"", "ended before the whole"),
        (b"100\nshort", "ended before the whole"),
        (b'{"gateway": {}}\n', "length"),
        (b"12345678901", "length"),
        (b"9999999\n", "acceptable"),
    ],
)
async def test_standard_input_that_is_no_configuration_is_refused(told, said, enter) -> None:
    made = await enter()
    await made.tell(told)
    made.process.stdin.close()
    assert await made.over() == EXIT_TROUBLE
    assert said in made.said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RETINUE_STATE_DIR": None}, "RETINUE_STATE_DIR"),
        ({"RETINUE_STATE_DIR": "here"}, "RETINUE_STATE_DIR"),
        ({"RETINUE_HEAP_MIB": "much"}, "RETINUE_HEAP_MIB"),
        ({"RETINUE_GATEWAY_PORT": "0"}, "RETINUE_GATEWAY_PORT"),
        ({"RETINUE_RELAY_PORT": "65536"}, "RETINUE_RELAY_PORT"),
        ({"RETINUE_CONFIG_FILE": "/nowhere/config.json"}, "ENOENT"),
    ],
)
async def test_a_wrong_variable_is_named(variables, said, enter) -> None:
    made = await enter(**variables)
    assert await made.over() == EXIT_TROUBLE
    assert said in made.said


async def test_a_connection_too_many_is_refused_and_the_others_go_on(running, eventually) -> None:
    first_reader, first = await running.connect()
    others = [await running.connect() for _ in range(CONNECTIONS_MAX)]
    refused = await eventually(lambda: [one for one in others if one[0].at_eof()])
    assert len(refused) < CONNECTIONS_MAX / 2
    first.write(b"hello")
    assert await first_reader.readexactly(5) == b"hello"
    for _, writer in [*others, (first_reader, first)]:
        writer.close()
    assert await eventually(running.echoes)


async def test_a_peer_that_does_not_read_holds_the_gateway_up(running, eventually) -> None:
    slow = socket.create_connection(("127.0.0.1", running.port))
    slow.sendall(b"flood")
    counts = [0]
    path = running.folder / "flood"

    def stands() -> bool:
        counts.append(path.stat().st_size if path.exists() else 0)
        return len(counts) > 50 and counts[-1] > 0 and counts[-1] == counts[-50]

    await eventually(stands, 20)
    assert counts[-1] * 65536 < 64 << 20
    assert await running.echoes()
    slow.close()


async def test_an_instance_ends_once_nobody_has_been_connected_for_long(enter, eventually) -> None:
    made = await enter(RETINUE_ABANDONED_S="1")
    await made.tell(b"%d\n" % len(CONFIG) + CONFIG)
    await made.listening()
    await eventually(made.echoes)
    assert await made.over() == 7
    assert "nobody has been connected" in made.said
