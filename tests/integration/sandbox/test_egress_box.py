"""A real box with a way out reaches what it was granted, and nothing by itself."""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from egress_origins import Ground, origins
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.ports import Box, Limits, Piece, Profile, Source, Workspace

PROBE = """
import json, os, socket, urllib.error, urllib.request

def tried(work):
    try:
        return work()
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return type(error).__name__

def fetched(url):
    return tried(lambda: urllib.request.urlopen(url, timeout=10).status)

def connected(address):
    return tried(lambda: socket.create_connection(address, 5) and "connected")

print(json.dumps({
    "granted": fetched("http://granted.test:PLAIN/"),
    "refused": fetched("http://other.test:PLAIN/"),
    "by_address": fetched("http://127.0.0.2:PLAIN/"),
    "tunnel": fetched("https://other.test:SECURE/"),
    "resolved": tried(lambda: socket.getaddrinfo("granted.test", 80) and "resolved"),
    "origin": connected(("127.0.0.1", PLAIN)),
    "outside": connected(("93.184.215.14", 80)),
    "metadata": connected(("169.254.169.254", 80)),
    "proxy": os.environ["HTTPS_PROXY"],
}))
"""


@asynccontextmanager
async def real_box(ground: Ground, folder: Path, *hosts: str) -> AsyncIterator[Box]:
    """Have a box of bubblewrap's with a way out."""
    files = folder / "workspaces" / "ten_a"
    files.mkdir(parents=True)
    folder.chmod(0o755)
    uids = Uids(folder / "uids", 700_000, 10)
    os.chown(files, uids.of("ten_a"), uids.of("ten_a"))
    backend = BwrapBackend(folder / "workspaces", uids, egress=ground.egress)
    fd = os.open(files, os.O_PATH | os.O_DIRECTORY)
    try:
        assert [check for check in await backend.check() if check.required and not check.ok] == []
        yield await backend.open(Workspace("ten_a", fd, uids.of("ten_a")), Profile(egress=hosts))
    finally:
        await backend.close()
        os.close(fd)


async def said(opened: Box, source: str) -> str:
    """Run a program in a box; answers what it said."""
    events = [event async for event in opened.run(Source(source), Limits())]
    return b"".join(event.data for event in events if isinstance(event, Piece)).decode()


async def test_a_box_reaches_what_it_was_granted_and_nothing_by_itself(
    tmp_path: Path, run_dir: Path, eventually: Callable[..., Awaitable[Any]]
) -> None:
    async with origins(tmp_path) as ground:
        source = PROBE.replace("PLAIN", str(ground.http)).replace("SECURE", str(ground.https))
        async with real_box(ground, run_dir, f"granted.test:{ground.http}") as opened:
            assert json.loads(await said(opened, source)) == {
                "granted": 200, "refused": 403, "by_address": 403, "tunnel": "URLError", "resolved": "gaierror",
                "origin": "ConnectionRefusedError", "outside": "OSError", "metadata": "OSError",
                "proxy": "http://127.0.0.1:3128",
            }  # fmt: skip
            # A proxy that dies comes back, and the box finds the new one's socket.
            envoy = ground.egress._envoy
            assert envoy is not None
            envoy._process.kill()
            await envoy.ended()
            again = source.partition("print(")[0] + f"print(fetched('http://granted.test:{ground.http}/'))"

            async def reached() -> bool:
                return await said(opened, again) == "200\n"

            await eventually(reached, 20.0)
