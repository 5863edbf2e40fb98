"""Implements ports.Backend with pods of a cluster that runs kubernetes-sigs/agent-sandbox."""

import asyncio
import contextlib
import hashlib
import secrets
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import structlog
from retinue_kit.errors import RetinueError

from retinue_sandbox.bwrap.agent_box import AgentBox
from retinue_sandbox.pod import entry, manifest
from retinue_sandbox.pod.cluster import Cluster, unavailable
from retinue_sandbox.pod.manifest import Options
from retinue_sandbox.ports import Box, Check, Exit, Isolation, Launched, Limits, Piece, Profile, Source, Workspace

BEGIN_TIMEOUT_S = 90.0
"""For a pod to run and its agent to be reached: a node to be found, the image to be fetched, the wall to be put up."""

CHECK_BEGIN_TIMEOUT_S = 15.0
"""For the self-test's; ports.CHECK_TIMEOUT_S bounds the whole."""

POLL_S = 0.1
POLL_MAX_S = 1.0
"""Between two looks at something that is coming up."""

CONNECT_TIMEOUT_S = 2.0
CHUNK_SIZE_BYTES = 64 * 1024
REMOVE_TRIES_MAX = 3
SWEEP_TIMEOUT_S = 30.0

SELF_TEST_TENANT = "self-test"
"""No tenant's id."""

SELF_TEST_UID = 65_532
"""As whom its box runs; nobody's, in most images."""

_PROBE = """
import os, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
def reached():
    try:
        socket.create_connection(SERVER, 1).close()
        return True
    except OSError:
        return False
def writable():
    try:
        os.close(os.open("/probe", os.O_CREAT | os.O_WRONLY))
        return True
    except OSError:
        return False
print(os.getuid() != 0, int(status["CapEff"], 16) == 0, not os.path.exists("/var/run/secrets/kubernetes.io"),
      not writable(), not reached())
"""

"""SERVER is the cluster's API server, which nothing keeps a box from but the cluster's network."""

_PROBED = {
    "pod_user": "a box runs as an ordinary user",
    "pod_capabilities": "a box has no capabilities",
    "pod_account": "a box has no service account",
    "pod_root": "a box can write to its files and to /tmp only",
    "pod_network": "a box reaches nothing",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class PodBox(AgentBox):
    """Implements ports.Box over the agent in a pod. Its end is the removal of the pod."""

    def __init__(self, control: socket.socket, isolation: Isolation, end: Callable[[], Awaitable[None]]) -> None:
        # There is no process of this machine behind it, so nothing of these is used.
        nobody = cast("asyncio.subprocess.Process", None)
        super().__init__(Launched(control, -1, 0, nobody), isolation)
        self._control = control
        self._end = end

    def _kill_all(self) -> None:
        """Nothing reaches into a pod: what is in it ends with it."""

    async def _clean_up(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        writer = getattr(self, "_writer", None)
        if writer is not None:
            writer.transport.abort()
        else:
            self._control.close()
        await self._end()


class PodBackend:
    """Makes pods, and removes them."""

    name = "pod"

    def __init__(self, options: Options, url: str, account: Path, namespace: str, owner: str = "") -> None:
        """`owner` tells this process' pods from others'; by default, the host's name, which a pod's is its own."""
        self.isolation: Isolation | None = options.isolation
        self._options = options
        self._where = url, account, namespace
        self._owner = owner or "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:63].strip("-")
        self._cluster: Cluster | None = None
        self._open: dict[str, PodBox | None] = {}
        self._relays: set[asyncio.Task[None]] = set()
        self._swept = False

    async def check(self) -> list[Check]:
        """See ports.Backend. A pod is begun each time, and removed."""
        workspace = Workspace(SELF_TEST_TENANT, -1, SELF_TEST_UID)
        try:
            await self._sweep()
            box = await self._begin(workspace, CHECK_BEGIN_TIMEOUT_S)
            try:
                probe = _PROBE.replace("SERVER", repr(self._server().place))
                events = [event async for event in box.run(Source(probe), Limits(wall_s=5.0))]
            finally:
                await box.close()
        except RetinueError as error:
            remedy = "See deploy/sandbox/README.md for what the cluster needs."
            return [Check("pod", False, f"{error.message} {error.private}".strip(), remedy)]
        said = b"".join(event.data for event in events if isinstance(event, Piece)).decode("utf-8", "replace")
        ended = next((event for event in events if isinstance(event, Exit)), None)
        words = said.split()
        if ended is None or ended.exit_code != 0 or len(words) != len(_PROBED):
            return [Check("pod", False, f"The self-test's box said {said[:200]!r}.", "Look at the image of boxes.")]
        found = [Check("pod", True, f"A pod of the class {self._options.runtime_class} answers.")]
        for (name, claim), word in zip(_PROBED.items(), words, strict=True):
            remedy = "" if word == "True" else "Compare the cluster's objects with deploy/sandbox/kubernetes."
            found.append(Check(name, word == "True", claim if word == "True" else f"Not so: {claim}.", remedy))
        return found

    async def open(self, workspace: Workspace, profile: Profile) -> Box:
        """See ports.Backend. Pods have no way to the network, so a profile that asks for one is refused."""
        if profile.egress:
            raise unavailable("A box in a pod has no way to the network.", check="egress")
        return await self._begin(workspace, BEGIN_TIMEOUT_S)

    async def held_bytes(self, tenant_id: str) -> int:
        """Nothing is seen of what a pod has open."""
        return 0

    async def close(self) -> None:
        """End every box."""
        boxes = [box.close() for box in self._open.values() if box is not None]
        await asyncio.gather(*boxes, return_exceptions=True)
        for task in list(self._relays):
            task.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        if self._cluster is not None:
            await self._cluster.close()
            self._cluster = None

    def _server(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(*self._where)
        return self._cluster

    async def _sweep(self) -> None:
        """Remove, once, what a former process of this owner has left."""
        if self._swept:
            return
        selector = f"{manifest.NAME_LABEL}={manifest.NAME},{manifest.OWNER_LABEL}={self._owner}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SWEEP_TIMEOUT_S):
                for name in await self._server().names(selector):
                    if name not in self._open:
                        await self._server().remove(name)
        self._swept = True

    async def _begin(self, workspace: Workspace, timeout_s: float) -> PodBox:
        name, token = f"box-{secrets.token_hex(10)}", secrets.token_hex(entry.TOKEN_LENGTH // 2)
        digest = hashlib.sha256(token.encode()).hexdigest()
        try:
            wanted = manifest.sandbox(self._options, workspace, name, self._owner, digest, datetime.now(UTC))
        except ValueError as error:
            raise unavailable("A box for this tenant cannot be made.", str(error), "pod") from None
        self._open[name] = None
        try:
            await self._server().make(wanted)
            async with asyncio.timeout(timeout_s):
                reader, writer = await self._reach(name)
            control = self._relay(reader, writer, token)
            box = self._open[name] = PodBox(control, self._options.isolation, lambda: self._remove(name))
        except TimeoutError:
            await self._remove(name)
            raise unavailable("The box's pod did not run in time.", name, "pod") from None
        except BaseException:
            await self._remove(name)
            raise
        await box.start()  # or it closes the box
        return box

    async def _reach(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Wait until the pod can be talked to. Raises SANDBOX_UNAVAILABLE if it never will."""
        pause_s = POLL_S
        while True:
            found = await self._server().find(name)
            if found is None:
                raise unavailable("The box was removed before it ran.", name, "pod")
            status: dict[str, Any] = found.get("status") or {}
            for condition in status.get("conditions") or ():
                if condition.get("type") == "Finished" and condition.get("status") == "True":
                    raise unavailable("The box's pod ended at once.", str(condition.get("reason")), "pod")
            for ip in status.get("podIPs") or ():
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        return await asyncio.open_connection(str(ip), entry.PORT)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_MAX_S)

    def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> socket.socket:
        """Carry what is said between the pod and a socket of this machine, which is answered."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        writer.write(token.encode())
        task = asyncio.create_task(_carry(theirs, reader, writer), name="pod relay")
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        return ours

    async def _remove(self, name: str) -> None:
        """Remove a box's pod; one that will not go is removed by the cluster when its time is over."""
        for number in range(REMOVE_TRIES_MAX):
            try:
                await self._server().remove(name)
                break
            except RetinueError as error:
                log.warning("a box's pod was not removed", box=name, error=error.message, detail=error.private)
                await asyncio.sleep(POLL_S * 2**number)
        self._open.pop(name, None)


async def _carry(near: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry both ways until one side has ended."""
    near_reader, near_writer = await asyncio.open_unix_connection(sock=near)
    tasks = [
        asyncio.create_task(_one_way(near_reader, writer), name="to a pod"),
        asyncio.create_task(_one_way(reader, near_writer), name="from a pod"),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (writer, near_writer):
            end.transport.abort()


async def _one_way(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK_SIZE_BYTES):
            sink.write(data)
            await sink.drain()
