"""Real boxes for tests: one self-test and one box for all tests of a file."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from probing import ORDINARY_UID, Besieged, besieging
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.files.roots import Roots
from retinue_sandbox.ports import Box, Exit, Limits, Profile, Work

Collect = Callable[..., Awaitable[tuple[bytes, bytes, Exit, int]]]


class Ground:
    """Boxes on this machine, and the files that they see."""

    def __init__(self, folder: Path) -> None:
        uids = Uids(folder / ".users", 700_000, 1000)
        self.roots = Roots(folder, uids.of)
        self.backend = BwrapBackend(folder, uids)

    async def open(self, tenant_id: str = "ten_a") -> Box:
        """Open a box; the backend ends it at the latest."""
        workspace = self.roots.open(tenant_id)
        try:
            return await self.backend.open(workspace, Profile())
        finally:
            os.close(workspace.fd)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    """Answer a maker of boxes; a machine on which none holds fails the tests that want one."""
    made = Ground(tmp_path_factory.mktemp("workspaces"))
    failed = [check for check in await made.backend.check() if check.required and not check.ok]
    assert not failed, failed
    yield made
    await made.backend.close()
    made.roots.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(ground: Ground) -> Box:
    """Answer a box that the tests of a file share."""
    return await ground.open()


@pytest.fixture(scope="session")
def collect() -> Collect:
    """Answer what runs something to its end: output, errors, the end, and how many bytes were left out."""

    async def run(box: Box, work: Work, limits: Limits | None = None) -> tuple[bytes, bytes, Exit, int]:
        said, omitted = {"stdout": b"", "stderr": b""}, 0
        async for item in box.run(work, limits or Limits()):
            if isinstance(item, Exit):
                return said["stdout"], said["stderr"], item, omitted
            said[item.stream] += item.data
            omitted += item.omitted_bytes
        raise AssertionError("no end was told")

    return run


AS_ROOT = pytest.param(0, marks=pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to serve as root"))
AS_USER = ORDINARY_UID if os.geteuid() == 0 else os.geteuid()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=[AS_ROOT, AS_USER], ids=["root", "user"])
async def besieged(request: pytest.FixtureRequest) -> AsyncIterator[Besieged]:
    """Answer a service to be attacked; see plugins/probing.py."""
    async with besieging(request.param) as made:
        yield made
