"""The bridge between a gateway's tools and boxes, as the plugin asks it, before a sandbox on real gRPC."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from fake_authority import FakeAuthority
from fake_box import FakeBox
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.openclaw import bridge as bridges
from retinue_runtime_adapter.openclaw import permits
from retinue_runtime_adapter.openclaw.bridge import Bridge
from retinue_runtime_adapter.openclaw.permits import CALLS_MAX, RunIdentity
from retinue_runtime_adapter.openclaw.tool_policy import PLUGIN_DIR
from retinue_runtime_adapter.tools.box import SandboxBox
from retinue_runtime_adapter.tools.ports import Call, Progress, Result, Scope, Verdict

KEY = "agent:a:retinue:s1"
OFFERED = frozenset({"exec", "read", "write", "memory_note"})


def identity(
    tenant_id: str = "ten_a", *, run_id: str = "run_1", token: int = 7, tools: frozenset[str] = OFFERED
) -> RunIdentity:
    scope = Scope(
        tenant_id, "ses_1", run_id, token, "openclaw", principal="usr_1", min_isolation="gvisor", egress=("a.b:443",)
    )
    return RunIdentity(scope, tools)


class Shout:
    """A tool of the mesh's own."""

    name = "memory_note"
    description = "Says it louder."
    parameters: Mapping[str, Any] = {"type": "object"}
    parallel = idempotent = False

    async def call(self, scope: Scope, call: Call, progress: Progress) -> Result:
        if "fail" in call.arguments:
            raise RetinueError(Reason.QUOTA_EXCEEDED, "Not today.")
        if "vain" in call.arguments:
            return Result(ok=False, text="In vain.")
        return Result(ok=True, text=f"{scope.tenant_id} {scope.session_id}: {call.arguments['text'].upper()}")


class World:
    """A bridge, what it asks, and what it believes."""

    def __init__(self, bridge: Bridge, box: FakeBox, authority: FakeAuthority) -> None:
        self.bridge = bridge
        self.box = box
        self.authority = authority
        self.runs = {("ins_1", "a", KEY): identity()}
        self.token = bridge.credential("ins_1")
        self.http = aiohttp.ClientSession()

    async def post(self, path: str, body: Any, token: str | None = None) -> tuple[int, list[dict[str, Any]]]:
        """Ask; answers the status and the lines."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.bridge.base_url + path, data=io.BytesIO(data), headers=headers) as response:
            text = await response.text()
            return response.status, [json.loads(line) for line in text.splitlines()]

    async def begin(self, tool: str, call_id: str = "call_1", **more: Any) -> tuple[int, list[dict[str, Any]]]:
        """Say that a tool is about to be called."""
        body = {"agentId": "a", "sessionKey": KEY, "callId": call_id, "tool": tool, "arguments": {}}
        return await self.post("/v1/calls", body | more)

    async def exec(self, command: str, stdin: bytes = b"", **more: Any) -> tuple[int, list[dict[str, Any]]]:
        """Run a command for the agent whose run is under way."""
        token = more.pop("token", None)
        body = {"agentId": "a", "sessionKey": KEY, "kind": "command", "command": command}
        body["stdin"] = base64.b64encode(stdin).decode()
        return await self.post("/v1/exec", body | more, token)


def said(lines: list[dict[str, Any]], stream: str = "stdout") -> bytes:
    return b"".join(base64.b64decode(line["data"]) for line in lines if line.get("stream") == stream)


@pytest_asyncio.fixture
async def world(serve: Any, peer: Any, tmp_path: Path) -> AsyncIterator[World]:
    box, authority = FakeBox(tmp_path, "ten_a"), FakeAuthority()
    sandbox = SandboxBox(peer("sandbox", await serve([box.service])))
    bridge = Bridge(sandbox, authority, lambda *who: made.runs.get(who), tools=[Shout()])
    await bridge.start()
    made = World(bridge, box, authority)
    assert await made.begin("exec") == (200, [{"allowed": True}])
    yield made
    await made.http.close()
    await bridge.close()


async def test_a_command_runs_in_the_box_of_the_run_under_way(world: World) -> None:
    status, lines = await world.exec("printf out; printf err >&2; exit 3")
    assert status == 200
    assert (said(lines), said(lines, "stderr"), lines[-1]) == (b"out", b"err", {"exitCode": 3})
    request = world.box.requests[0]
    assert (request.tenant_id, request.session_id, request.fencing_token) == ("ten_a", "ses_1", 7)
    assert (request.profile.min_isolation, request.profile.egress) == ("gvisor", ["a.b:443"])
    origin = request.origin
    assert (origin.run_id, origin.call_id, origin.tool, origin.principal) == ("run_1", "call_1", "exec", "usr_1")
    assert world.box.tenants_of_calls == ["ten_a"]


async def test_policy_is_asked_about_the_call_as_the_model_made_it(world: World) -> None:
    await world.begin("write", "call_2", arguments={"path": "a.txt", "content": "x"})
    scope, call = world.authority.asked[-1]
    assert (scope, call) == (identity().scope, Call("call_2", "write", {"path": "a.txt", "content": "x"}))


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (Verdict("deny", reason="Not on Sundays."), "Not on Sundays."),
        (Verdict("deny"), "Policy does not allow this call of read."),
        (Verdict("ask", reason="It may hurt."), "needs a person's approval"),
    ],
)
async def test_what_policy_does_not_allow_is_refused_and_comes_to_nothing(
    world: World, verdict: Verdict, told: str
) -> None:
    world.authority.verdicts["read"] = verdict
    await world.post("/v1/calls/end", {"agentId": "a", "sessionKey": KEY, "callId": "call_1"})
    status, lines = await world.begin("read")
    assert (status, lines[0]["reason"]) == (403, "POLICY_DENIED")
    assert told in lines[0]["message"]
    assert (await world.exec("true", kind="script"))[0] == 403
    assert not world.box.requests


async def test_one_effect_what_may_change_something_begins_only_once_that_is_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    may_begin = asyncio.Event()

    async def record(call: Call) -> None:
        asked.append(call.tool)
        await may_begin.wait()

    monkeypatch.setattr(permits, "RECORD_TIMEOUT_S", 0.05)
    world.runs["ins_1", "a", KEY] = replace(identity(), record=record)
    note = {"agentId": "a", "sessionKey": KEY, "callId": "c1", "arguments": {"text": "hey"}}
    assert (await world.begin("read"))[0] == 200
    for status, lines in (await world.begin("write"), await world.post("/v1/tools/memory_note", note)):
        assert (status, lines[0]["reason"]) == (503, "DEPENDENCY_UNAVAILABLE")
    assert (await world.exec("true"))[0] == 403, "no call of exec is open"
    assert asked == ["write", "memory_note"]
    may_begin.set()
    assert (await world.begin("exec"))[0] == (await world.post("/v1/tools/memory_note", note))[0] == 200


async def test_without_an_answer_from_policy_no_call_is_made(world: World) -> None:
    world.authority.trouble = RetinueError.unavailable("policy")
    status, lines = await world.begin("read")
    assert (status, lines[0]["reason"]) == (503, "DEPENDENCY_UNAVAILABLE")


async def test_a_tool_that_the_run_is_not_offered_is_refused_without_asking(world: World) -> None:
    world.runs["ins_1", "a", KEY] = identity(tools=frozenset())
    asked = len(world.authority.asked)
    body = {"agentId": "a", "sessionKey": KEY, "callId": "c1", "arguments": {"text": "hey"}}
    assert (await world.begin("exec"))[0] == (await world.post("/v1/tools/memory_note", body))[0] == 403
    assert len(world.authority.asked) == asked


async def test_a_box_does_nothing_beside_an_open_call(world: World) -> None:
    assert (await world.exec("true", kind="script"))[0] == 200
    end = {"agentId": "a", "sessionKey": KEY, "callId": "call_1"}
    assert await world.post("/v1/calls/end", end) == (200, [{"ended": True}])
    assert (await world.exec("true"))[0] == (await world.exec("true", kind="script"))[0] == 403
    await world.begin("read", "call_2")
    assert (await world.exec("true"))[0] == 403
    assert (await world.exec("true", kind="script"))[0] == 200
    assert world.box.requests[-1].origin.call_id == "call_2"
    assert (await world.exec("true", kind="other"))[0] == 400


async def test_another_run_in_the_same_place_has_no_call_open(world: World) -> None:
    world.runs["ins_1", "a", KEY] = identity(run_id="run_2")
    assert (await world.exec("true"))[0] == 403


async def test_open_calls_are_bounded(world: World) -> None:
    for number in range(CALLS_MAX):
        await world.begin("read", f"more_{number}")
    assert (await world.exec("true"))[0] == 403
    assert (await world.begin("read", "x" * 257))[0] == 400


@pytest.mark.parametrize("size", [1, 100, bridges.STDIN_SIZE_MAX_BYTES])
async def test_input_reaches_the_command_whole(world: World, size: int) -> None:
    status, lines = await world.exec("wc -c; exit 4", bytes(n % 251 for n in range(size)))
    assert (status, said(lines).strip(), lines[-1]) == (200, str(size).encode(), {"exitCode": 4})


async def test_more_input_than_a_file_may_have_is_refused(world: World) -> None:
    status, lines = await world.exec("cat", bytes(bridges.STDIN_SIZE_MAX_BYTES + 1))
    assert (status, lines[0]["reason"]) == (400, "FIELD_INVALID")
    status, lines = await world.exec("cat", bytes(bridges.BODY_SIZE_MAX_BYTES))
    assert (status, lines[0]["reason"]) == (429, "BODY_TOO_LARGE")
    assert not world.box.requests


@pytest.mark.parametrize("token", ["", "x", "Bearer", "é"])
async def test_a_stranger_is_refused(world: World, token: str) -> None:
    assert (await world.exec("id", token=token))[0] == 401
    assert not world.box.requests


async def test_a_token_is_good_until_its_instance_is_forgotten(world: World) -> None:
    other = world.bridge.credential("ins_1")
    assert (await world.exec("true", token=other))[0] == (await world.exec("true"))[0] == 200
    world.bridge.credential("ins_2")
    world.bridge.forget("ins_1")
    assert (await world.exec("true", token=other))[0] == (await world.exec("true"))[0] == 401


@pytest.mark.parametrize(
    "claim",
    [
        {"agentId": "b"},
        {"agentId": "b", "sessionKey": "agent:b:retinue:s1"},
        {"sessionKey": "agent:b:retinue:s1"},
        {"sessionKey": "agent:a:retinue:s2"},
        {"sessionKey": "agent:a:"},
        {"sessionKey": ""},
        {"agentId": "", "sessionKey": "agent::retinue:s1"},
    ],
)
async def test_a_run_that_is_not_under_way_there_is_refused(world: World, claim: dict[str, str]) -> None:
    world.runs["ins_2", "b", "agent:b:retinue:s1"] = identity()
    world.runs["ins_1", "b", KEY] = identity()  # were it asked for, an agent in another's session would be found
    status, lines = await world.exec("id", **claim)
    assert (status, lines[0]["reason"]) == (403, "POLICY_DENIED")
    assert not world.box.requests


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b"\xff", b'{"agentId":"a","sessionKey":"k","command":1}', b'{"tenantId":"b"}']
)
async def test_a_call_that_makes_no_sense_is_refused(world: World, body: bytes) -> None:
    assert (await world.post("/v1/exec", body))[0] == 400


@pytest.mark.parametrize("claim", [{"command": ""}, {"command": "a\0b"}, {"command": "x" * 200_000}, {"stdin": "?"}])
async def test_a_command_that_cannot_be_run_is_refused(world: World, claim: dict[str, str]) -> None:
    body = {"agentId": "a", "sessionKey": KEY, "kind": "command", "command": "true"}
    assert (await world.post("/v1/exec", body | claim))[0] == 400
    assert not world.box.requests


async def test_box_or_refuse_without_a_box_a_command_fails_and_says_why(world: World) -> None:
    world.runs["ins_1", "a", KEY] = identity("ten_b")
    await world.begin("exec")
    status, lines = await world.exec("id")
    assert (status, lines[0]["reason"]) == (409, "SANDBOX_UNAVAILABLE")
    assert "No box" in lines[0]["message"]


async def test_a_command_ends_with_its_run(world: World, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    monkeypatch.setattr(bridges, "CHECK_S", 0.02)
    asking = asyncio.create_task(world.exec("sleep 60"))
    await eventually(lambda: world.box.requests)
    world.runs["ins_1", "a", KEY] = identity(run_id="run_2", token=8)
    status, lines = await asking
    assert (status, lines[0]["reason"]) == (409, "RUN_TERMINAL")
    await eventually(lambda: world.box.ended == 1)


async def test_a_command_ends_when_its_asker_has_gone(world: World, eventually: Any) -> None:
    asking = asyncio.create_task(world.exec("sleep 60"))
    await eventually(lambda: world.box.requests)
    asking.cancel()
    await eventually(lambda: world.box.ended == 1)
    assert (await world.exec("true"))[0] == 200


async def test_a_command_that_says_too_much_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridges, "OUTPUT_SIZE_MAX_BYTES", 1_000_000)
    _, lines = await world.exec("head -c 5000000 /dev/zero")
    assert lines[-1]["reason"] == "OUTPUT_TOO_LARGE"
    assert len(said(lines)) <= 1_000_000
    assert max(len(line.get("data", "")) for line in lines) <= bridges.CHUNK_SIZE_MAX_BYTES * 4 / 3 + 4


async def test_an_instance_has_so_many_calls_at_once_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(bridges, "CALLS_MAX", 2)
    asking = [asyncio.create_task(world.exec("sleep 60")) for _ in range(2)]
    await eventually(lambda: len(world.box.requests) == 2)
    assert (await world.exec("true"))[0] == 429
    asking[0].cancel()
    await eventually(lambda: world.box.ended == 1)
    assert (await world.exec("true"))[0] == 200
    asking[1].cancel()
    await asyncio.wait(asking)


async def test_a_tool_of_the_mesh_is_told_for_whom_it_is_called(world: World) -> None:
    body = {"agentId": "a", "sessionKey": KEY, "callId": "c1", "arguments": {"text": "hey"}}
    assert await world.post("/v1/tools/memory_note", body) == (200, [{"text": "ten_a ses_1: HEY"}])
    assert world.authority.asked[-1] == (identity().scope, Call("c1", "memory_note", {"text": "hey"}))
    status, lines = await world.post("/v1/tools/memory_note", body | {"arguments": {"fail": True}})
    assert (status, lines[0]["message"]) == (429, "Not today.")
    assert await world.post("/v1/tools/memory_note", body | {"arguments": {"vain": 1}}) == (
        200,
        [{"message": "In vain."}],
    )
    assert (await world.post("/v1/tools/memory_none", body))[1][0]["reason"] == "CAPABILITY_MISSING"
    assert (await world.post("/v1/tools/memory_note", body | {"sessionKey": "agent:b:x"}))[0] == 403


async def test_a_tool_of_the_mesh_that_policy_does_not_allow_is_not_called(world: World) -> None:
    world.authority.verdicts["memory_note"] = Verdict("deny", reason="No notes.")
    body = {"agentId": "a", "sessionKey": KEY, "callId": "c1", "arguments": {"text": "hey"}}
    status, lines = await world.post("/v1/tools/memory_note", body)
    assert (status, lines) == (403, [{"reason": "POLICY_DENIED", "message": "No notes."}])


async def test_a_tool_that_breaks_tells_nothing_of_it(world: World) -> None:
    body = {"agentId": "a", "sessionKey": KEY, "callId": "c1", "arguments": {}}
    status, lines = await world.post("/v1/tools/memory_note", body)
    assert (status, lines) == (500, [{"reason": "INTERNAL", "message": "Something went wrong inside."}])


async def test_a_process_stands_for_a_command_and_ends_as_it_ends(world: World, openclaw_dir: Path) -> None:
    call = {
        "url": world.bridge.base_url,
        "token": world.token,
        "request": {
            "agentId": "a",
            "sessionKey": KEY,
            "kind": "command",
            "command": "printf out; printf err >&2; exit 5",
            "stdin": "",
        },
    }
    assert await stand_in(openclaw_dir, call) == (5, b"out", b"err")
    refused = call | {"token": "x"}
    assert await stand_in(openclaw_dir, refused) == (126, b"", b"The bridge does not know this gateway.\n")


async def stand_in(openclaw_dir: Path, call: dict[str, Any]) -> tuple[int | None, bytes, bytes]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        openclaw_dir / "node",
        PLUGIN_DIR / "exec.mjs",
        env={"RETINUE_BRIDGE_CALL": json.dumps(call)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )
    out, err = await process.communicate()
    return process.returncode, out, err
