"""Boxes made with bubblewrap on this machine."""

import asyncio
import os
import platform
import secrets
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from retinue_kit.errors import RetinueError

from retinue_sandbox.bwrap import checks, finding, held, options, seccomp
from retinue_sandbox.bwrap.agent_box import AgentBox
from retinue_sandbox.bwrap.cgroup import Cgroups
from retinue_sandbox.bwrap.launcher import BwrapLauncher, Ground
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.ports import Box, BoxSpec, Check, Egress, Isolation, Launched, Profile, Workspace
from retinue_sandbox.refuse import NoBoxError

SELF_TEST_TENANT = "self-test"
"""No tenant's id; its user runs the self-test's box."""


AGENT = [Path(__file__).with_name(f"{name}.py") for name in ("agent", "child", "forwarder", "framing", "watching")]
"""What runs in a box, the agent first."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class BwrapBackend:
    """Implements ports.Backend. Boxes are opened by the event loop's thread, and end with it."""

    name = "bwrap"
    isolation: Isolation | None = Isolation.NAMESPACE

    def __init__(self, workspaces: Path, uids: Uids, *, bwrap_path: str = "", egress: Egress | None = None) -> None:
        """`workspaces` is the folder of all tenants' files, `bwrap_path` which bubblewrap to take: see finding.look."""
        self._workspaces, self._uids, self._bwrap_path, self._egress = workspaces, uids, bwrap_path, egress
        self._ground: Ground | None = None
        self._launcher: BwrapLauncher | None = None
        self._failed: Check | None = Check("self_test", False, "boxes were not tried out yet")
        self._open: dict[AgentBox, asyncio.Task[None]] = {}
        self._whose: dict[AgentBox, tuple[str, int, int]] = {}
        """The tenant, the first process, and the file system of the workspace."""

    async def check(self) -> list[Check]:
        """Try out what boxes depend on, in a box. Never raises; within ports.CHECK_TIMEOUT_S.

        While something that is required does not hold, no box is opened.
        """
        found: list[Check] = []
        try:
            async for check in self._looks():
                found.append(check)
        except Exception as error:  # a bug here, or a machine as no other: no box is opened on either
            log.exception("the self-test broke")
            found.append(Check("self_test", False, f"it broke: {error!r}", "read the sandbox's log"))
        self._failed = next((check for check in found if check.required and not check.ok), None)
        return found

    async def open(self, workspace: Workspace, profile: Profile) -> Box:
        """Open a box. Raises RetinueError(SANDBOX_UNAVAILABLE, metadata.check) if that cannot be had."""
        if self._failed is not None:
            raise NoBoxError(self._failed)
        return (await self._opened(workspace, profile.egress))[1]

    async def held_bytes(self, tenant_id: str) -> int:
        """See ports.Backend."""
        boxes = [(pid, device) for whose, pid, device in self._whose.values() if whose == tenant_id]
        return await asyncio.to_thread(lambda: sum(held.held_bytes(pid, device) for pid, device in boxes))

    async def close(self) -> None:
        """End every box."""
        boxes = list(self._open.items())
        await asyncio.gather(*(box.close() for box, _ in boxes), return_exceptions=True)
        await asyncio.gather(*(task for _, task in boxes), return_exceptions=True)

    async def _looks(self) -> AsyncIterator[Check]:
        found, bwrap = await asyncio.to_thread(finding.look, self._bwrap_path, self._workspaces)
        yield bwrap
        if found is None:
            return
        filters = seccomp.filters()
        if not filters:
            yield Check("seccomp", False, f"there is no filter for {platform.machine()}", finding.NO_SECCOMP)
            return
        if self._ground is None or self._ground.bwrap != found:
            try:
                self._ground = Ground(found, Cgroups.find(), filters, *await asyncio.to_thread(_python))
            except (OSError, subprocess.SubprocessError) as error:
                yield Check("python", False, f"the box's Python does not run: {error}", "install python3 3.9 or newer")
                return
            self._launcher = BwrapLauncher(self._ground)
        try:
            uid = await asyncio.to_thread(self._uids.of, SELF_TEST_TENANT)
        except (OSError, RetinueError) as error:
            yield Check("users", False, str(error), "let the service write to the folder of workspaces")
            return
        for check in await checks.self_test(self._workspaces, uid, self._ground.interpreter, self._opened):
            yield check
        for check in self._ground.cgroups.checks():
            yield check
        if self._egress is not None:
            yield self._egress.check()

    async def _opened(self, workspace: Workspace, hosts: Sequence[str] = ()) -> tuple[Launched, Box]:
        launcher, egress = self._launcher, self._egress
        if launcher is None or (hosts and egress is None):
            raise NoBoxError(Check("egress", False, "there is no proxy that a box could reach anything by"))
        name = f"box-{secrets.token_hex(8)}"
        async with AsyncExitStack() as undo:
            way_out = ""
            if hosts and egress is not None:
                way_out = await egress.grant(name, hosts, tenant_id=workspace.tenant_id)
                undo.push_async_callback(egress.revoke, name)
            launched = await launcher.launch(BoxSpec(workspace, egress_folder=way_out))
            undo.push_async_callback(launcher.settle, launched)
            box = AgentBox(launched, Isolation.NAMESPACE)
            undo.push_async_callback(box.close)
            await box.start()
            self._whose[box] = (workspace.tenant_id, launched.pid, os.fstat(workspace.fd).st_dev)
            self._open[box] = asyncio.create_task(self._until_lost(box, undo.pop_all()), name=name)
        return launched, box

    async def _until_lost(self, box: AgentBox, undo: AsyncExitStack) -> None:
        try:
            await box.lost.wait()
        finally:
            try:
                await undo.aclose()
            finally:
                del self._open[box], self._whose[box]


def _python() -> tuple[options.Interpreter, dict[str, bytes]]:
    python = options.interpreter()
    return python, options.compiled(python, AGENT)
