"""What tests of other services take for granted of the sandbox: the service on this machine's boxes, and its fake."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fake_box import FakeBox
from retinue.sandbox.v1 import execution_pb2, sandbox_service_pb2_grpc
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue_kit.client import Peer
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_kit.server import Server
from retinue_sandbox.__main__ import assemble
from retinue_sandbox.config import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT_S = 30.0
TENANTS = ("ten_a", "ten_b")


class Sandbox:
    """A sandbox under test."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.stub: Any = sandbox_service_pb2_grpc.SandboxServiceStub(peer.channel)

    async def exec(self, *argv: str, tenant: str = "ten_a", **more: Any) -> tuple[bytes, bytes, execution_pb2.Exit]:
        """Run a command: its output, its errors, its end."""
        request = pb.ExecRequest(tenant_id=tenant, session_id="ses_a", fencing_token=1, argv=argv, **more)
        return await told(self._peer.stream(self.stub.Exec, request, timeout_s=TIMEOUT_S))

    async def python(self, source: str, tenant: str = "ten_a") -> tuple[bytes, bytes, execution_pb2.Exit]:
        request = pb.RunPythonRequest(tenant_id=tenant, session_id="ses_a", fencing_token=1, source=source)
        return await told(self._peer.stream(self.stub.RunPython, request, timeout_s=TIMEOUT_S))

    async def close_session(self) -> None:
        request = pb.CloseSessionRequest(tenant_id="ten_a", session_id="ses_a", fencing_token=1)
        await self._peer.call(self.stub.CloseSession, request, timeout_s=TIMEOUT_S)


async def told(answers: Any) -> tuple[bytes, bytes, execution_pb2.Exit]:
    said = {"stdout": b"", "stderr": b""}
    end: execution_pb2.Exit | None = None
    async with aclosing(answers):
        async for answer in answers:
            assert end is None, "the end is the last message"
            if answer.WhichOneof("event") == "exit":
                end = answer.exit
            else:
                said[answer.output.stream] += answer.output.data
    assert end is not None
    return said["stdout"], said["stderr"], end


Make = Callable[[Path, AsyncExitStack, bool], Awaitable[Server]]


async def real(folder: Path, stack: AsyncExitStack, boxes: bool) -> Server:
    workspaces = str(folder / "workspaces") if boxes else ""
    return await assemble(Settings(address="127.0.0.1:0", workspaces_dir=workspaces), stack)


async def fake(folder: Path, stack: AsyncExitStack, boxes: bool) -> Server:
    return Server("127.0.0.1:0", [FakeBox(folder, *(TENANTS if boxes else ())).service])


SANDBOXES: dict[str, Make] = {"real": real, "fake": fake}


async def serving(make: Make, folder: Path, stack: AsyncExitStack, *, boxes: bool) -> Sandbox:
    server = await make(folder, stack, boxes)
    port = await server.start()
    stack.push_async_callback(server.drain, 0)
    peer = Peer("sandbox", f"127.0.0.1:{port}")
    stack.push_async_callback(peer.close)
    return Sandbox(peer)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(SANDBOXES))
async def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    async with AsyncExitStack() as stack:
        yield await serving(SANDBOXES[request.param], tmp_path_factory.mktemp("sandbox"), stack, boxes=True)


async def test_a_command_says_what_it_says_and_ends_as_it_ends(sandbox: Sandbox) -> None:
    out, err, end = await sandbox.exec("sh", "-c", "cat; pwd; echo bad >&2; exit 3", stdin=b"input\n")
    assert (out, err) == (b"input\n/workspace\n", b"bad\n")
    assert (end.outcome, end.exit_code) == ("exited", 3)


async def test_arguments_are_words_and_long_output_is_whole(sandbox: Sandbox) -> None:
    assert (await sandbox.exec("printf", "%s|", "a b", ";", "$HOME"))[0] == b"a b|;|$HOME|"
    assert (await sandbox.exec("head", "-c", "300000", "/dev/zero"))[0] == bytes(300_000)


async def test_files_are_the_tenants_and_stay(sandbox: Sandbox) -> None:
    await sandbox.exec("sh", "-c", "mkdir -p kept; echo mine > /workspace/kept/file")
    await sandbox.close_session()
    assert (await sandbox.exec("cat", "file", cwd="kept"))[0] == b"mine\n"
    assert (await sandbox.exec("ls", tenant="ten_b"))[0] == b""


async def test_source_is_run_and_its_error_is_an_exit_code(sandbox: Sandbox) -> None:
    out, _, end = await sandbox.python("open('made', 'w').write('x')\nprint(6 * 7)")
    assert (out, end.outcome, end.exit_code) == (b"42\n", "exited", 0)
    assert (await sandbox.exec("cat", "made"))[0] == b"x"
    _, err, end = await sandbox.python("raise ValueError('no')")
    assert (end.outcome, end.exit_code) == ("exited", 1)
    assert b"ValueError: no" in err


@pytest.mark.parametrize("name", sorted(SANDBOXES))
async def test_box_or_refuse_without_a_box_every_execution_is_refused(name: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        sandbox = await serving(SANDBOXES[name], tmp_path, stack, boxes=False)
        for execution in (sandbox.exec("touch", f"{tmp_path}/done"), sandbox.python(f"open('{tmp_path}/done', 'w')")):
            with pytest.raises(RetinueError) as caught:
                await execution
            assert (caught.value.reason, caught.value.code) == (Reason.SANDBOX_UNAVAILABLE, Code.FAILED_PRECONDITION)
            assert caught.value.metadata["check"]
        assert not (tmp_path / "done").exists()
