"""The sandbox's service: what it executes, writes down and refuses."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from retinue.sandbox.v1 import execution_pb2, sandbox_service_pb2_grpc
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue_kit.client import Peer
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_sandbox import metrics
from retinue_sandbox.__main__ import assemble
from retinue_sandbox.config import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = "retinue.sandbox.v1.SandboxService"
TIMEOUT_S = 30.0


class House:
    """The service on boxes of this machine, over gRPC."""

    def __init__(self, folder: Path, peer: Peer) -> None:
        self.folder, self.peer = folder, peer
        self.stub: Any = sandbox_service_pb2_grpc.SandboxServiceStub(peer.channel)

    async def call(self, name: str, request: Any) -> Any:
        return await self.peer.call(getattr(self.stub, name), request, timeout_s=TIMEOUT_S)

    def begin(self, *argv: str, tenant="ten_a", session="ses_a", token=1, **more: Any) -> AsyncIterator[Any]:
        """Begin a command."""
        request = pb.ExecRequest(tenant_id=tenant, session_id=session, fencing_token=token, argv=argv, **more)
        return self.peer.stream(self.stub.Exec, request, timeout_s=TIMEOUT_S)

    async def exec(self, *argv: str, **more: Any) -> tuple[str, execution_pb2.Exit]:
        """Run a command to its end."""
        return await said(self.begin(*argv, **more))

    async def python(self, source: str, **more: Any) -> tuple[str, execution_pb2.Exit]:
        """Run source to its end."""
        request = pb.RunPythonRequest(tenant_id="ten_a", session_id="ses_a", fencing_token=1, source=source, **more)
        return await said(self.peer.stream(self.stub.RunPython, request, timeout_s=TIMEOUT_S))

    def records(self) -> list[dict[str, Any]]:
        """Read the audit."""
        paths = sorted((self.folder / "audit").glob("sandbox-*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


async def said(answers: Any) -> tuple[str, execution_pb2.Exit]:
    text = b""
    async with aclosing(answers):
        async for answer in answers:
            if answer.WhichOneof("event") == "exit":
                return text.decode(), answer.exit
            text += answer.output.data
    raise AssertionError("no end was told")


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[House]:
    """Serve for the block, in this process."""
    async with AsyncExitStack() as stack:
        server = await assemble(Settings(address="127.0.0.1:0", audit_dir=str(folder / "audit"), **settings), stack)
        port = await server.start()
        stack.push_async_callback(server.drain, 0)
        peer = Peer("sandbox", f"127.0.0.1:{port}")
        stack.push_async_callback(peer.close)
        yield House(folder, peer)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Serve with boxes."""
    folder = tmp_path_factory.mktemp("sandbox")
    async with serving(folder, workspaces_dir=str(folder / "workspaces")) as made:
        yield made


async def refusal(awaitable: Any) -> RetinueError:
    with pytest.raises(RetinueError) as caught:
        await awaitable
    return caught.value


async def test_it_says_what_boxes_there_are(house):
    told = await house.call("Describe", pb.DescribeRequest())
    failed = [check for check in told.checks if check.required and not check.ok]
    assert (told.backend, told.isolation, told.available, failed) == ("bwrap", "namespace", True, [])
    assert all(check.detail and not (check.ok and check.remedy) for check in told.checks)
    assert {"box", "kernel", "limit_memory", "egress"} <= {check.name for check in told.checks}


async def test_a_session_keeps_its_files_and_its_box(house):
    text, end = await house.exec("sh", "-c", "echo hello > /tmp/kept; echo hello > kept; cat", stdin=b"input")
    assert (text, end.outcome, end.exit_code) == ("input", "exited", 0)
    assert (await house.exec("cat", "/tmp/kept", "kept"))[0] == "hello\nhello\n"
    text, end = await house.python("print(open('kept').read()); raise SystemExit(3)")
    assert (text, end.outcome, end.exit_code) == ("hello\n\n", "exited", 3)
    opened = await house.call(
        "OpenSession", pb.OpenSessionRequest(tenant_id="ten_a", session_id="ses_a", fencing_token=1)
    )
    assert (opened.isolation, opened.reused) == ("namespace", True)
    assert (await house.exec("sh", "-c", "cat /tmp/kept; cat kept", one_shot=True))[0].count("hello\n") == 1
    closing = pb.CloseSessionRequest(tenant_id="ten_a", session_id="ses_a", fencing_token=1)
    assert (await house.call("CloseSession", closing)).closed
    assert not (await house.call("CloseSession", closing)).closed
    assert (await house.exec("sh", "-c", "ls /tmp; cat kept"))[0] == "hello\n"


async def test_one_shots_after_one_another_see_nothing_of_one_another(house):
    look = "exec 2>/dev/null; cat /tmp/left kept; echo left > /tmp/left; echo kept > kept"
    taken = sum(map(spares_taken, ("spare", "made")))
    for number in range(4):
        one = {"session": f"ses_shot_{number}", "tenant": "ten_shot", "one_shot": True}
        text, end = await house.exec("sh", "-c", look, **one)
        assert (text, end.outcome) == ("kept\n" if number else "", "exited")
    assert sum(map(spares_taken, ("spare", "made"))) == taken + 4
    assert spares_taken("spare") > 0, "who comes again finds a box ready"


def spares_taken(where: str) -> float:
    return metrics.boxes_taken.labels(where)._value.get()


async def test_no_cross_tenant_another_tenants_files_and_processes_are_out_of_reach(house):
    begun = house.begin("sh", "-c", "echo secret > mine; echo begun; exec sleep 1000", tenant="ten_b")
    assert (await anext(begun)).output.data == b"begun\n"
    look = "cat /proc/[0-9]*/cmdline; cat /workspace/../*/*/mine ../*/files/mine"
    text, _ = await house.exec("sh", "-c", f"exec 2>/dev/null; {look}", session="ses_other")
    assert "/workspace/../" in text, "its own processes are seen"
    assert "secret" not in text
    assert "1000" not in text
    text, _ = await house.exec("find", "/", "/workspace", "-xdev", "-name", "mine", session="ses_other")
    assert text == ""
    assert (await house.exec("cat", "mine", session="ses_other", tenant="ten_b"))[0] == "secret\n"
    await begun.aclose()


async def test_one_who_goes_away_ends_what_it_began(house, eventually):
    begun = house.begin("sh", "-c", "echo begun; (setsid sleep 1000 &); sleep 1000", session="ses_left")
    assert (await anext(begun)).output.data == b"begun\n"
    await begun.aclose()
    count = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"

    def outcomes():
        return [record["outcome"] for record in house.records() if record["session_id"] == "ses_left"]

    await eventually(lambda: outcomes() == ["cancelled"])
    text, _ = await house.exec("python3", "-c", count, session="ses_left")
    assert text == "2\n"
    assert outcomes() == ["cancelled", "exited"]


async def test_a_limit_is_an_outcome_and_the_session_lives_on(house):
    limits = execution_pb2.Limits(wall_time=Duration(nanos=100_000_000))
    _, end = await house.exec("sleep", "1000", limits=limits)
    assert (end.outcome, end.exit_code, end.message) == ("wall_time", 137, "It took longer than 0.1 s.")
    assert (await house.exec("echo", "on"))[0] == "on\n"


async def test_no_stale_write_an_overtaken_attempt_is_ended_and_refused(house):
    begun = house.begin("sh", "-c", "echo begun; sleep 1000", session="ses_fenced", token=7)
    assert (await anext(begun)).output.data == b"begun\n"
    opening = pb.OpenSessionRequest(tenant_id="ten_a", session_id="ses_fenced", fencing_token=8)
    assert (await house.call("OpenSession", opening)).reused
    assert (await refusal(anext(begun))).reason == Reason.STALE_FENCING_TOKEN
    error = await refusal(house.exec("touch", "late", session="ses_fenced", token=7))
    assert (error.reason, error.metadata) == (Reason.STALE_FENCING_TOKEN, {"current": "8"})
    assert (await house.exec("ls", "late", session="ses_fenced", token=8))[1].exit_code
    written = [record for record in house.records() if record["session_id"] == "ses_fenced"]
    assert [(record["fencing_token"], record["outcome"]) for record in written] == [(7, "overtaken"), (8, "exited")]


@pytest.mark.parametrize(
    ("more", "reason", "field"),
    [
        ({"cwd": "../x"}, Reason.FIELD_INVALID, "cwd"),
        ({"env": {"A=": "b"}}, Reason.FIELD_INVALID, "env"),
        ({"limits": execution_pb2.Limits(process_count=513)}, Reason.FIELD_INVALID, "limits.process_count"),
        ({"profile": execution_pb2.Profile(egress=["host"])}, Reason.FIELD_INVALID, "profile.egress"),
        ({"profile": execution_pb2.Profile(min_isolation="microvm")}, Reason.POLICY_DENIED, None),
    ],
)
async def test_what_cannot_be_is_refused_by_name(house, more, reason, field):
    error = await refusal(house.exec("true", **more))
    assert (error.reason, error.metadata.get("field")) == (reason, field)


async def test_every_execution_is_written_down_before_its_end_is_told(house):
    origin = execution_pb2.Origin(run_id="run_1", call_id="call_1", tool="exec", principal="usr_1", approval_id="apr_1")
    secret = "s3cr3t-value"
    script = f'printf "%s" "$TOKEN_NAME"; echo "password={secret}" >&2'
    _, end = await house.exec("sh", "-c", script, env={"TOKEN_NAME": secret}, stdin=secret.encode(), origin=origin)
    await house.python(f"print({secret!r})", origin=origin)
    command, source = [record for record in house.records() if record["call_id"] == "call_1"]
    assert secret not in json.dumps([command, source])
    assert {name: command[name] for name in ("kind", "tenant_id", "session_id", "fencing_token", "backend")} == {
        "kind": "execution", "tenant_id": "ten_a", "session_id": "ses_a", "fencing_token": 1, "backend": "bwrap",
    }  # fmt: skip
    for record in (command, source):
        told = [record[name] for name in ("run_id", "call_id", "tool", "principal", "approval_id")]
        assert told == ["run_1", "call_1", "exec", "usr_1", "apr_1"]
        assert (record["outcome"], record["exit_code"], record["isolation"]) == ("exited", 0, "namespace")
        assert record["limits"]["wall_s"] == 30
    assert command["argv"][:2] == ["sh", "-c"]
    assert command["env_names"] == ["TOKEN_NAME"]
    assert command["output_size_bytes"] == len(secret) + len(f"password={secret}\n")
    assert command["duration_ms"] == end.duration_ms
    assert (
        len({command["argv_digest"], command["stdin_digest"], source["source_digest"], command["output_digest"]}) == 4
    )
    assert "argv" not in source


@pytest.mark.parametrize("bwrap_path", [None, "/no/such/bwrap", "/bin/true"])
async def test_box_or_refuse_without_a_box_nothing_is_executed(bwrap_path, tmp_path):
    paths = {"workspaces_dir": str(tmp_path / "w"), "bwrap_path": bwrap_path} if bwrap_path else {}
    async with serving(tmp_path, **paths) as house:
        told = await house.call("Describe", pb.DescribeRequest())
        assert not told.available
        failed = next(check for check in told.checks if check.required and not check.ok)
        assert failed.remedy
        opening = pb.OpenSessionRequest(tenant_id="ten_a", session_id="ses_a", fencing_token=1)
        for call in (
            house.exec("touch", f"{tmp_path}/done"),
            house.exec("touch", f"{tmp_path}/done", one_shot=True),
            house.python(f"open('{tmp_path}/done', 'w')"),
            house.call("OpenSession", opening),
        ):
            error = await refusal(call)
            assert (error.reason, error.code) == (Reason.SANDBOX_UNAVAILABLE, Code.FAILED_PRECONDITION)
            assert error.metadata == {"check": failed.name}
        assert not (tmp_path / "done").exists()


async def test_health_and_reflection_answer(house):
    await house.peer.check(SERVICE)
    call = reflection_pb2_grpc.ServerReflectionStub(house.peer.channel).ServerReflectionInfo(timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert {SERVICE, "retinue.sandbox.v1.FileService", "grpc.health.v1.Health"} <= names


async def test_a_process_that_is_killed_takes_its_boxes_with_it(launch, run_dir, tmp_path, healthy, eventually):
    address = f"unix:{run_dir}/sandbox.sock"
    process = launch("retinue_sandbox", RETINUE_ADDRESS=address, RETINUE_WORKSPACES_DIR=str(tmp_path))
    peer = Peer("sandbox", address)
    await healthy(peer)
    house = House(tmp_path, peer)
    begun = house.begin("sh", "-c", "echo begun; exec sleep 1000")
    assert (await anext(begun)).output.data == b"begun\n"
    rest = asyncio.create_task(refusal(anext(begun)))
    boxes = set(children(process.pid))
    assert boxes
    process.send_signal(signal.SIGKILL)
    await rest
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in boxes))
    await peer.close()


def children(pid: int) -> list[int]:
    """What a process has started, and all beneath."""
    found = [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]
    return [one for child in found for one in (child, *children(child))]


async def test_it_serves_as_a_process_and_drains(launch, run_dir, healthy, eventually):
    address = f"unix:{run_dir}/sandbox.sock"
    process = launch("retinue_sandbox", RETINUE_ADDRESS=address)
    peer = Peer("sandbox", address)
    await healthy(peer)
    await peer.close()
    process.send_signal(signal.SIGTERM)
    assert await eventually(lambda: process.poll() is not None)
    assert process.returncode == 0, process.log()
