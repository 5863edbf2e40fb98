"""What a client of MCP asks of its tenant's box: allowed by policy, then done by the sandbox."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from retinue.policy.v1 import tool_service_pb2, tool_service_pb2_grpc
from retinue.sandbox.v1 import (
    execution_pb2,
    file_service_pb2,
    file_service_pb2_grpc,
    sandbox_service_pb2,
    sandbox_service_pb2_grpc,
)
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError

from retinue_gateway.credentials import Caller
from retinue_gateway.decisions import Allowances, Decisions

KIND = "mcp"
"""What such calls are to policy: a kind beside "chat" and the kinds of tasks, and a runtime beside the others."""

FENCING_TOKEN = 1
"""Of every call: who calls has no attempts, one of which would have to give way to another."""

SESSION_DIGEST_LENGTH = 32
"""Hexadecimal digits that name a session; a guess would not help, since tenant and principal are in it."""

CPU_TIME_S = 10.0
"""What the box gives an execution of a processor unless it is asked for more."""

WALL_TIME_S = 30.0
"""Of an execution whose caller says nothing, as boxes have it."""

OUTPUT_SIZE_MAX_BYTES = 64 * 1024
"""Bytes that are told of each stream, its first and its last half; a model reads them."""

MARGIN_S = 15.0
"""Beyond an execution's own time: its box may have to be opened, and its end has to be told."""

FILE_TIMEOUT_S = 10.0
"""For one call about files."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A call: who makes it, in which session, and what policy knows it by."""

    caller: Caller
    session_id: str
    call_id: str
    tool: str
    arguments: Mapping[str, Any]

    @property
    def origin(self) -> execution_pb2.Origin:
        """What it is written down with."""
        return execution_pb2.Origin(call_id=self.call_id[:256], tool=self.tool, principal=self.caller.principal[:256])


def session_of(caller: Caller, given: str) -> str:
    """Name a caller's session. `given` tells apart those of one principal, and can name nobody else's."""
    parts = "\n".join(f"{len(part)}:{part}" for part in (caller.tenant_id, caller.principal, given))
    return f"mcp_{hashlib.sha256(parts.encode(errors='surrogatepass')).hexdigest()[:SESSION_DIGEST_LENGTH]}"


class Boxes:
    """Every method asks policy first, and raises RetinueError only: what it denies is POLICY_DENIED."""

    def __init__(self, policy: Peer, sandbox: Peer, router: Peer) -> None:
        self._policy = policy
        self._decisions = Decisions(policy)
        self._allowances = Allowances(router)
        self._sandbox = sandbox
        self._rules: Any = tool_service_pb2_grpc.ToolServiceStub(policy.channel)
        self._boxes: Any = sandbox_service_pb2_grpc.SandboxServiceStub(sandbox.channel)
        self._files: Any = file_service_pb2_grpc.FileServiceStub(sandbox.channel)

    async def execute(
        self, ask: Ask, command: str, *, cwd: str, stdin: bytes, timeout_s: float
    ) -> AsyncIterator[execution_pb2.Output | execution_pb2.Exit]:
        """Run a shell's command; yields what it says, and how it ended at last. Leaving the iteration kills it."""
        profile = await self.allow(ask)
        request = sandbox_service_pb2.ExecRequest(
            tenant_id=ask.caller.tenant_id,
            session_id=ask.session_id,
            fencing_token=FENCING_TOKEN,
            argv=["/bin/sh", "-c", command],
            stdin=stdin,
            cwd=cwd,
            limits=_limits(timeout_s),
            profile=profile,
            origin=ask.origin,
        )
        async for event in self._follow(self._boxes.Exec, request, timeout_s):
            yield event

    async def run_python(
        self, ask: Ask, source: str, *, timeout_s: float
    ) -> AsyncIterator[execution_pb2.Output | execution_pb2.Exit]:
        """Run Python source, likewise."""
        profile = await self.allow(ask)
        request = sandbox_service_pb2.RunPythonRequest(
            tenant_id=ask.caller.tenant_id,
            session_id=ask.session_id,
            fencing_token=FENCING_TOKEN,
            source=source,
            limits=_limits(timeout_s),
            profile=profile,
            origin=ask.origin,
        )
        async for event in self._follow(self._boxes.RunPython, request, timeout_s):
            yield event

    async def read(
        self, ask: Ask, path: str, *, offset_bytes: int, size_bytes: int
    ) -> file_service_pb2.ReadFileResponse:
        """Read a part of a file."""
        request = file_service_pb2.ReadFileRequest(
            tenant_id=ask.caller.tenant_id, path=path, offset_bytes=offset_bytes, size_bytes=size_bytes
        )
        return await self._file(ask, self._files.ReadFile, request)  # type: ignore[no-any-return]

    async def write(
        self, ask: Ask, path: str, data: bytes, *, expected_digest: str
    ) -> file_service_pb2.WriteFileResponse:
        """Write a file whole."""
        request = file_service_pb2.WriteFileRequest(
            tenant_id=ask.caller.tenant_id,
            path=path,
            data=data,
            expected_digest=expected_digest,
            origin=ask.origin,
        )
        return await self._file(ask, self._files.WriteFile, request)  # type: ignore[no-any-return]

    async def edit(
        self, ask: Ask, path: str, old_text: str, new_text: str, *, every: bool
    ) -> file_service_pb2.EditFileResponse:
        """Replace a text in a file."""
        request = file_service_pb2.EditFileRequest(
            tenant_id=ask.caller.tenant_id,
            path=path,
            old_text=old_text,
            new_text=new_text,
            all=every,
            origin=ask.origin,
        )
        return await self._file(ask, self._files.EditFile, request)  # type: ignore[no-any-return]

    async def list(
        self, ask: Ask, path: str, *, recursive: bool, page_size: int, page_token: str
    ) -> file_service_pb2.ListFilesResponse:
        """List a page of a folder's files."""
        request = file_service_pb2.ListFilesRequest(
            tenant_id=ask.caller.tenant_id,
            path=path,
            recursive=recursive,
            page_size=page_size,
            page_token=page_token,
        )
        return await self._file(ask, self._files.ListFiles, request)  # type: ignore[no-any-return]

    async def delete(self, ask: Ask, path: str, *, recursive: bool) -> file_service_pb2.DeleteFileResponse:
        """Remove a file or a folder."""
        request = file_service_pb2.DeleteFileRequest(
            tenant_id=ask.caller.tenant_id, path=path, recursive=recursive, origin=ask.origin
        )
        return await self._file(ask, self._files.DeleteFile, request)  # type: ignore[no-any-return]

    async def stop(self, ask: Ask) -> bool:
        """End the session's box; answers whether there was one. Needs no leave: nothing is begun by it."""
        request = sandbox_service_pb2.CloseSessionRequest(
            tenant_id=ask.caller.tenant_id, session_id=ask.session_id, fencing_token=FENCING_TOKEN
        )
        answer: sandbox_service_pb2.CloseSessionResponse = await self._sandbox.call(self._boxes.CloseSession, request)
        return answer.closed

    async def allow(self, ask: Ask) -> execution_pb2.Profile:
        """Ask policy; answers which box the call may have. Raises RetinueError(POLICY_DENIED)."""
        tenant_id = ask.caller.tenant_id
        decision, allowed = await asyncio.gather(
            self._decisions.decide(tenant_id, KIND), self._allowances.find(tenant_id)
        )
        if not decision.sandbox_profile:
            raise RetinueError(Reason.POLICY_DENIED, "This tenant has no tools.", rule="sandbox_profile")
        arguments = Struct()
        arguments.update(ask.arguments)
        request = tool_service_pb2.AuthorizeToolRequest(
            tenant_id=tenant_id,
            scope=tool_service_pb2.ToolScope(principal=ask.caller.principal[:256], kind=KIND, runtime=KIND),
            tool=ask.tool,
            arguments=arguments,
            allowed=allowed,
        )
        answer = await self._policy.call(self._rules.AuthorizeTool, request)
        found: tool_service_pb2.ToolDecision = answer.decision
        if found.effect != "allow":
            reason = found.reason or f"Policy does not allow this call of {ask.tool}."
            if found.effect == "ask":
                reason = f"This call needs a person's approval, and none can be given here. {reason}"
            raise RetinueError(Reason.POLICY_DENIED, reason, layer=found.layer, rule=found.rule)
        return execution_pb2.Profile(min_isolation=decision.sandbox_profile, egress=decision.egress)

    async def _file(self, ask: Ask, method: Callable[..., Any], request: object) -> Any:
        await self.allow(ask)
        return await self._sandbox.call(method, request, timeout_s=FILE_TIMEOUT_S)

    async def _follow(
        self, method: Callable[..., Any], request: object, timeout_s: float
    ) -> AsyncIterator[execution_pb2.Output | execution_pb2.Exit]:
        answers = self._sandbox.stream(method, request, timeout_s=(timeout_s or WALL_TIME_S) + MARGIN_S)
        async with aclosing(answers) as found:  # type: ignore[type-var]
            async for answer in found:
                if answer.HasField("exit"):
                    yield answer.exit
                    return
                yield answer.output
        raise RetinueError.unavailable("sandbox", private="an execution ended without saying how")


def _limits(timeout_s: float) -> execution_pb2.Limits:
    limits = execution_pb2.Limits(output_size_bytes=OUTPUT_SIZE_MAX_BYTES)
    if timeout_s:
        wall = Duration()
        wall.FromMilliseconds(round(timeout_s * 1000))
        limits.wall_time.CopyFrom(wall)
        if timeout_s > CPU_TIME_S:
            limits.cpu_time.CopyFrom(wall)
    return limits
