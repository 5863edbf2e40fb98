"""The `mcp` package is loaded for the first request that needs it, once, beside all else that is served."""

import asyncio
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from retinue_gateway.credentials import Credentials
from retinue_gateway.mcp import endpoint
from retinue_kit.errors import RetinueError

TOTAL = 8
HEADERS = [(b"x-retinue-tenant", b"ten_a"), (b"x-retinue-scope", b"chat")]

NOT_LOADED = """
import sys
import retinue_gateway.__main__
assert "retinue_gateway.mcp.endpoint" in sys.modules
heavy = {"mcp", "mcp_types", "pydantic", "starlette", "httpx2"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_gateway_that_nobody_asks_by_mcp_never_loads_it() -> None:
    done = subprocess.run([sys.executable, "-c", NOT_LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Loading:
    """Stands for what takes seconds: waits until it is let go, and fails if it is to."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[int] = set()
        self.goes_on = threading.Event()
        self.trouble: Exception | None = None
        self.entered = self.left = 0

    def __call__(self, *_: Any) -> endpoint.Served:
        self.count += 1
        self.threads.add(threading.get_ident())
        assert self.goes_on.wait(20)
        if self.trouble is not None:
            raise self.trouble
        return endpoint.Served(self._answer, self._run)

    @asynccontextmanager
    async def _run(self) -> Any:
        self.entered += 1
        yield
        self.left += 1

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    made = Loading()
    monkeypatch.setattr(endpoint, "load", made)
    return made


@pytest.fixture
def served(peer: Any) -> endpoint.Endpoint:
    credentials = Credentials(peer("directory", "unix:/nowhere"), SimpleNamespace(now=lambda: 0.0))  # type: ignore[arg-type]
    credentials._revoked = frozenset()
    nothing: Any = None
    return endpoint.Endpoint(nothing, nothing, credentials, "localhost")


async def ask(served: endpoint.Endpoint) -> int:
    """Make a request; answers the status."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    await served.serve({"method": "POST", "path": endpoint.PATH, "headers": HEADERS}, receive, send)
    return statuses[0]


async def test_all_who_come_first_wait_for_one_load_in_a_thread_and_whoever_leaves_does_not_stop_it(
    served: endpoint.Endpoint, loading: Loading, eventually: Any
) -> None:
    async with served.running():
        asking = [asyncio.create_task(ask(served)) for _ in range(TOTAL)]
        await eventually(lambda: loading.count)
        asking[0].cancel()
        loading.goes_on.set()
        assert await asyncio.gather(*asking[1:]) == [200] * (TOTAL - 1)
        assert await ask(served) == 200
        assert (loading.count, loading.entered, loading.left) == (1, 1, 0)
    assert loading.left == 1
    assert threading.get_ident() not in loading.threads


async def test_a_load_that_fails_is_told_and_tried_again(served: endpoint.Endpoint, loading: Loading) -> None:
    loading.goes_on.set()
    async with served.running():
        for trouble, status in ((ImportError("half installed"), 500), (RetinueError.unavailable("disk"), 503)):
            loading.trouble = trouble
            assert await ask(served) == status
        loading.trouble = None
        assert await ask(served) == 200
    assert (loading.count, loading.left) == (3, 1)


async def test_bounded_nobody_waits_for_a_load_without_end(
    served: endpoint.Endpoint, loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LOAD_TIMEOUT_S", 0.01)
    async with served.running():
        assert await ask(served) == 503
        loading.goes_on.set()
