"""The tools that this build brings along, over the wire to what stands in for the sandbox, policy and the router."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from retinue.policy.v1 import tool_service_pb2, tool_service_pb2_grpc
from retinue.router.v1 import (
    memory_service_pb2,
    memory_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from retinue.router.v1.memory_service_pb2 import (
    Fact,
    FoundFact,
    RememberFactsResponse,
    SearchFactsResponse,
)
from retinue.sandbox.v1 import (
    execution_pb2,
    file_service_pb2,
    file_service_pb2_grpc,
    sandbox_service_pb2,
    sandbox_service_pb2_grpc,
)
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.tools import assembly, metrics
from retinue_runtime_adapter.tools.assembly import Tools
from retinue_runtime_adapter.tools.ports import Call, Result, Said, Scope

SCOPE = Scope(
    tenant_id="ten_a", session_id="ses_a", run_id="run_a", fencing_token=7, runtime="light", contact="ann",
    min_isolation="gvisor", egress=("a.test:443",), allowed=(("exec", "ls *"),), principal="usr_a",
)  # fmt: skip


class Clock:
    """The year 2026 has begun."""

    def monotonic(self) -> float:
        return 0.0

    def now(self) -> float:
        return 1_767_225_600.0


class Sandbox(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Says what a command says: `say` is told, and how it ends; without a box it refuses."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.say: list[Any] = []
        self.left = asyncio.Event()
        self.refusal: RetinueError | None = None

    async def _answer(self, request: Any, kind: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        for step in self.say:
            if isinstance(step, execution_pb2.Exit):
                yield kind(exit=step)
            elif step is None:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.set()
            else:
                yield kind(output=execution_pb2.Output(stream=step[0], data=step[1]))

    async def Exec(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in self._answer(request, sandbox_service_pb2.ExecResponse):
            yield answer

    async def RunPython(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in self._answer(request, sandbox_service_pb2.RunPythonResponse):
            yield answer

    async def OpenSession(self, request: Any, context: Any) -> sandbox_service_pb2.OpenSessionResponse:
        self.requests.append(request)
        return sandbox_service_pb2.OpenSessionResponse(isolation="gvisor")


class Files(file_service_pb2_grpc.FileServiceServicer):
    """Files in memory."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], bytes] = {}
        self.requests: list[Any] = []

    def _find(self, request: Any) -> bytes:
        try:
            return self.held[request.root or "files", request.path]
        except KeyError:
            raise RetinueError(Reason.FILE_NOT_FOUND, "There is no such file.") from None

    def _info(self, request: Any) -> file_service_pb2.FileInfo:
        data = self.held[request.root or "files", request.path]
        digest = hashlib.sha256(data).hexdigest()
        return file_service_pb2.FileInfo(path=request.path, kind="file", size_bytes=len(data), digest=digest)

    async def ReadFile(self, request: Any, context: Any) -> file_service_pb2.ReadFileResponse:
        data = self._find(request)
        end = request.offset_bytes + request.size_bytes if request.size_bytes else len(data)
        return file_service_pb2.ReadFileResponse(data=data[request.offset_bytes : end], info=self._info(request))

    async def WriteFile(self, request: Any, context: Any) -> file_service_pb2.WriteFileResponse:
        self.requests.append(request)
        key = (request.root or "files", request.path)
        held = self.held.get(key)
        found = hashlib.sha256(held).hexdigest() if held is not None else "absent"
        if request.expected_digest not in ("", found):
            raise RetinueError(Reason.FILE_CHANGED, "The file has changed.")
        self.held[key] = request.data
        return file_service_pb2.WriteFileResponse(info=self._info(request))

    async def EditFile(self, request: Any, context: Any) -> file_service_pb2.EditFileResponse:
        self.requests.append(request)
        text = self._find(request).decode()
        count = text.count(request.old_text)
        if count != 1 and not request.all:
            raise RetinueError(Reason.EDIT_MISMATCH, f"The old text is there {count} times.", match_count=str(count))
        self.held["files", request.path] = text.replace(request.old_text, request.new_text).encode()
        return file_service_pb2.EditFileResponse(info=self._info(request), replaced_count=count)

    async def ListFiles(self, request: Any, context: Any) -> file_service_pb2.ListFilesResponse:
        infos = [
            file_service_pb2.FileInfo(path=path, kind="file", size_bytes=len(data))
            for (root, path), data in sorted(self.held.items())
            if root == "files" and path.startswith(request.path)
        ]
        return file_service_pb2.ListFilesResponse(files=infos[: request.page_size])

    async def DeleteFile(self, request: Any, context: Any) -> file_service_pb2.DeleteFileResponse:
        self._find(request)
        del self.held["files", request.path]
        return file_service_pb2.DeleteFileResponse(removed_count=1)


class Policy(tool_service_pb2_grpc.ToolServiceServicer):
    """Answers one decision."""

    def __init__(self) -> None:
        self.decision = tool_service_pb2.ToolDecision(effect="allow")
        self.requests: list[Any] = []

    async def AuthorizeTool(self, request: Any, context: Any) -> tool_service_pb2.AuthorizeToolResponse:
        self.requests.append(request)
        return tool_service_pb2.AuthorizeToolResponse(decision=self.decision)


class Memory(memory_service_pb2_grpc.MemoryServiceServicer):
    """Remembers what it was asked, and finds what it is told to."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.found: list[Fact] = []

    async def RememberFacts(self, request: Any, context: Any) -> RememberFactsResponse:
        self.requests.append(request)
        return RememberFactsResponse()

    async def SearchFacts(self, request: Any, context: Any) -> SearchFactsResponse:
        self.requests.append(request)
        return SearchFactsResponse(facts=[FoundFact(fact=fact, score=0.5) for fact in self.found])


class Schedules(schedule_service_pb2_grpc.ScheduleServiceServicer):
    """Makes one schedule a key."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    async def CreateSchedule(self, request: Any, context: Any) -> schedule_service_pb2.CreateScheduleResponse:
        if request.cron == "never":
            raise RetinueError.field("cron", "must have five fields")
        replayed = request.idempotency_key in self.made
        self.made[request.idempotency_key] = request
        schedule = schedule_service_pb2.Schedule(schedule_id="sch_1")
        schedule.next_time.FromSeconds(1_767_254_400)
        return schedule_service_pb2.CreateScheduleResponse(schedule=schedule, replayed=replayed)


def serviced(module: Any, name: str, add: Any, servicer: Any) -> Service:
    return Service(add, servicer, module.DESCRIPTOR.services_by_name[name].full_name)


class World:
    """Everything around the tools."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.said: list[Said] = []

    async def call(self, name: str, scope: Scope = SCOPE, **arguments: Any) -> Result:
        tool = await self.tools.toolbox.find(scope, name)
        assert tool is not None
        return await tool.call(scope, Call("call_1", name, arguments), self.said.append)


@pytest_asyncio.fixture
async def world(serve: Any) -> AsyncIterator[Any]:
    sandbox, files, policy, schedules, memory = Sandbox(), Files(), Policy(), Schedules(), Memory()
    box = await serve(
        [
            serviced(
                sandbox_service_pb2, "SandboxService",
                sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server, sandbox,
            ),
            serviced(file_service_pb2, "FileService", file_service_pb2_grpc.add_FileServiceServicer_to_server, files),
        ]
    )  # fmt: skip
    adding = tool_service_pb2_grpc.add_ToolServiceServicer_to_server
    rules = await serve([serviced(tool_service_pb2, "ToolService", adding, policy)])
    scheduling = schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server
    remembering = memory_service_pb2_grpc.add_MemoryServiceServicer_to_server
    router = await serve(
        [
            serviced(schedule_service_pb2, "ScheduleService", scheduling, schedules),
            serviced(memory_service_pb2, "MemoryService", remembering, memory),
        ]
    )
    settings = Settings(address="", sandbox_address=box, policy_address=rules, router_address=router)
    async with AsyncExitStack() as stack:
        made = assembly.assemble(settings, Clock(), stack)
        assert made is not None
        found: Any = World(made)
        found.sandbox, found.files, found.policy, found.schedules = sandbox, files, policy, schedules
        found.memory = memory
        yield found


async def test_without_policy_there_are_no_tools_and_without_a_sandbox_none_that_wants_one() -> None:
    async with AsyncExitStack() as stack:
        assert assembly.assemble(Settings(address="", sandbox_address="unix:/x"), Clock(), stack) is None
        made = assembly.assemble(Settings(address="", policy_address="unix:/x"), Clock(), stack)
        assert made is not None
        assert made.box is None
        assert not await made.toolbox.offered(SCOPE, metrics.BUILTIN)


async def test_every_tool_of_this_build_is_there_and_no_other(world: Any) -> None:
    offered = await world.tools.toolbox.offered(SCOPE, [*metrics.BUILTIN, "abacus", "mcp__x__y", "mcp__*"])
    assert sorted(tool.name for tool in offered) == sorted(metrics.BUILTIN)
    assert [tool.name for tool in await world.tools.toolbox.offered(SCOPE, ["read"])] == ["read"]
    assert {tool.name for tool in offered if tool.idempotent} == {
        *("read", "write", "list", "memory_note", "memory_search", "schedule_task"),
    }
    assert {tool.name for tool in offered if tool.parallel} == {"read", "list", "memory_search"}


async def test_files_are_written_read_edited_listed_and_removed(world: Any) -> None:
    assert (
        await world.call("write", path="/workspace/a/b.txt", content="Grüße one")
    ).text == "Wrote 11 bytes to a/b.txt."
    assert (await world.call("read", path="a/b.txt")).text == "Grüße one"
    assert (await world.call("read", path="a/b.txt", offset=0, limit=3)).text == "Gr\n[bytes 0 to 3 of 11]"
    assert (
        await world.call("edit", path="a/b.txt", old_text="one", new_text="two")
    ).text == "Replaced once in a/b.txt."
    assert (await world.call("list")).text == "a/b.txt  11"
    assert (await world.call("delete", path="a/b.txt")).text == "Removed a/b.txt."
    assert (await world.call("list")).text == "Nothing is there."
    write, edit = world.files.requests
    for request in (write, edit):
        assert (request.tenant_id, request.session_id, request.fencing_token) == ("ten_a", "ses_a", 7)
        assert (request.origin.run_id, request.origin.call_id) == ("run_a", "call_1")


async def test_what_a_file_call_refuses_is_raised_with_its_reason(world: Any) -> None:
    world.files.held["files", "a"] = b"x x\0"
    for name, arguments, reason in (
        ("read", {"path": "none"}, Reason.FILE_NOT_FOUND),
        ("edit", {"path": "a", "old_text": "x", "new_text": "y"}, Reason.EDIT_MISMATCH),
        ("delete", {"path": "/workspace"}, Reason.FIELD_INVALID),
        ("write", {"path": "/etc/passwd", "content": ""}, Reason.FIELD_INVALID),
    ):
        with pytest.raises(RetinueError) as refused:
            await world.call(name, **arguments)
        assert refused.value.reason is reason
    assert (await world.call("read", path="a")).text == "a holds no text: 4 bytes."


async def test_a_command_runs_in_the_sessions_box_and_its_output_is_told_as_it_comes(world: Any) -> None:
    letter = "ü".encode()
    world.sandbox.say = [("stdout", b"one " + letter[:1]), ("stdout", letter[1:]), ("stderr", b"oh"),
                         execution_pb2.Exit(outcome="exited")]  # fmt: skip
    result = await world.call("exec", command="echo", cwd="/workspace/sub", stdin="in", timeout_s=2)
    assert result == Result(True, "one ü\noh")
    assert "".join(said.text for said in world.said if said.stream == "stdout") == "one ü"
    (request,) = world.sandbox.requests
    assert list(request.argv) == ["/bin/sh", "-c", "echo"]
    assert (request.cwd, request.stdin, request.limits.wall_time.seconds) == ("sub", b"in", 2)
    assert (request.tenant_id, request.session_id, request.fencing_token) == ("ten_a", "ses_a", 7)
    assert (request.profile.min_isolation, list(request.profile.egress)) == ("gvisor", ["a.test:443"])
    assert (request.origin.tool, request.origin.principal) == ("exec", "usr_a")
    assert request.limits.cpu_time.seconds == 10


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (execution_pb2.Exit(outcome="exited", exit_code=3), "Exit code 3."),
        (execution_pb2.Exit(outcome="memory", exit_code=137, message="It took too much."), "It took too much. Exit"),
        (execution_pb2.Exit(outcome="signalled", exit_code=139), "Ended: signalled. Exit code 139."),
    ],
)
async def test_a_command_that_does_not_end_well_says_how(world: Any, end: Any, said: str) -> None:
    world.sandbox.say = [end]
    result = await world.call("python", code="1 / 0")
    assert not result.ok
    assert said in result.text
    assert world.sandbox.requests[0].source == "1 / 0"


async def test_box_or_refuse_without_a_box_the_tool_fails_with_the_sandboxs_own_words(world: Any) -> None:
    world.sandbox.refusal = RetinueError(Reason.SANDBOX_UNAVAILABLE, "No box holds here.", check="namespaces")
    with pytest.raises(RetinueError) as refused:
        await world.call("exec", command="true")
    assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
    assert refused.value.metadata["check"] == "namespaces"


async def test_cancelling_a_command_leaves_its_call_so_that_it_is_killed(world: Any, eventually: Any) -> None:
    world.sandbox.say = [("stdout", b"begun"), None]
    running = asyncio.create_task(world.call("exec", command="sleep 100"))
    await eventually(lambda: world.said)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(world.sandbox.left.wait(), 10)


async def test_fencing_opens_the_session_under_the_scopes_token(world: Any) -> None:
    await world.tools.box.fence(SCOPE)
    assert world.sandbox.requests[0].fencing_token == 7


async def test_facts_are_remembered_of_the_runs_contact_and_a_title_and_a_text_are_one_of_them(world: Any) -> None:
    facts = [{"text": "Rows.", "domain": "Sport, outdoors!", "kind": "profile", "importance": 8}, {"text": "Sings."}]
    assert await world.call("memory_note", facts=facts) == Result(True, "Remembered 2 facts.")
    assert await world.call("memory_note", title="Tea\n ", text=" green ") == Result(True, "Remembered.")
    first, second = world.memory.requests
    assert (first.tenant_id, first.contact, first.run_id) == ("ten_a", "ann", "run_a")
    rows, sings = first.facts
    assert (rows.text, rows.domain, rows.kind, rows.importance) == ("Rows.", "sport-outdoors", "profile", 8)
    assert (sings.text, sings.domain, sings.kind, sings.importance) == ("Sings.", "", "", 0)
    assert [fact.text for fact in second.facts] == ["Tea: green"]
    assert not (await world.call("memory_note")).ok
    assert not (await world.call("memory_note", facts=[{"text": "  "}])).ok
    assert len(world.memory.requests) == 2


async def test_bounded_a_search_answers_the_best_facts_as_lines(world: Any) -> None:
    assert (await world.call("memory_search", query="sport")).text == "Nothing like that is remembered."
    world.memory.found = [Fact(text="Rows.", domain="sport", kind="profile", importance=8)]
    found = await world.call("memory_search", query="sport")
    assert found == Result(True, "- Rows. (sport, profile, importance 8, 1970-01-01)")
    asked = world.memory.requests[-1]
    assert (asked.tenant_id, asked.contact, asked.query, asked.page_size) == ("ten_a", "ann", "sport", 10)


async def test_one_effect_a_task_is_scheduled_once_however_often_the_call_is_made(world: Any) -> None:
    for _ in range(2):
        result = await world.call("schedule_task", text="Water the plants", cron="0 8 * * *")
        assert result == Result(True, "Scheduled as sch_1; it comes next at 2026-01-01T08:00+00:00.")
    ((key, request),) = world.schedules.made.items()
    assert key == "run_a.call_1"
    assert (request.contact, request.kind, request.input["text"]) == ("ann", "reminder", "Water the plants")
    with pytest.raises(RetinueError):
        await world.call("schedule_task", text="x", cron="never")
    nobody = Scope(tenant_id="ten_a", session_id="s", run_id="r", fencing_token=1, runtime="light")
    assert not (await world.call("schedule_task", nobody, text="x", cron="0 8 * * *")).ok


async def test_policy_is_asked_with_arguments_and_allowances_and_its_answer_is_kept(world: Any) -> None:
    world.policy.decision = tool_service_pb2.ToolDecision(
        effect="ask", layer="security", rule="on_miss", reason="So.", pattern="rm *", summary="s" * 900, expire_s=60
    )
    call = Call("call_1", "exec", {"command": "rm x", "n": [1, {"a": None}]})
    verdict = await world.tools.authority.authorize(SCOPE, call, approved=True)
    assert (verdict.effect, verdict.layer, verdict.rule, verdict.pattern) == ("ask", "security", "on_miss", "rm *")
    assert (len(verdict.summary), verdict.expire_s) == (500, 60)
    (request,) = world.policy.requests
    assert (request.tool, request.approved, request.arguments["command"]) == ("exec", True, "rm x")
    assert [(one.tool, one.pattern) for one in request.allowed] == [("exec", "ls *")]
    assert (request.scope.runtime, request.scope.kind, request.scope.principal) == ("light", "chat", "usr_a")


async def test_a_decision_without_an_effect_is_no_permission(world: Any) -> None:
    world.policy.decision = tool_service_pb2.ToolDecision()
    with pytest.raises(RetinueError):
        await world.tools.authority.authorize(SCOPE, Call("c", "exec", {}))
