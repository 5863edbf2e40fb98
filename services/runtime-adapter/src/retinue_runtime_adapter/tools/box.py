"""Boxes and files as tools see them: the sandbox service, for one who has a scope."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from google.protobuf.duration_pb2 import Duration
from retinue.sandbox.v1 import execution_pb2, file_service_pb2, sandbox_service_pb2
from retinue.sandbox.v1.file_service_pb2_grpc import FileServiceStub
from retinue.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from retinue_kit.client import Peer
from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.tools.ports import Call, Ended, Execution, Scope

WALL_TIME_S = 30.0
"""The box's own default for an execution."""

CPU_TIME_S = 10.0
"""The box's own default for the time of a processor."""

WALL_TIME_MAX_S = 600.0
"""The most that a box gives one."""

MARGIN_S = 15.0
"""Beyond an execution's own time: its box may have to be opened, and its end has to be told."""

OPEN_TIMEOUT_S = 10.0
"""For a box to be opened; one takes some tens of milliseconds."""

FILE_TIMEOUT_S = 10.0
"""For one call about files."""

SANDBOX = "sandbox"
"""The service's name in errors."""


Steps = AsyncGenerator[tuple[str, bytes] | Ended, None]
"""Output by stream, then the end."""


def origin(scope: Scope, call: Call) -> execution_pb2.Origin:
    """What an execution is written down with."""
    return execution_pb2.Origin(
        run_id=scope.run_id,
        call_id=call.call_id[:256],
        tool=call.tool[:128],
        principal=scope.principal[:256],
        approval_id=call.approval_id[:64],
    )


def profile(scope: Scope) -> execution_pb2.Profile:
    """Which box a scope's tools run in."""
    return execution_pb2.Profile(min_isolation=scope.min_isolation, egress=scope.egress)


def _duration(seconds: float) -> Duration:
    span = Duration()
    span.FromMilliseconds(round(seconds * 1000))
    return span


class SandboxBox:
    """Executes in the box of a scope's session. Implements ports.Box."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub: Any = SandboxServiceStub(peer.channel)

    def execute(self, scope: Scope, call: Call, execution: Execution) -> Steps:
        limits = execution_pb2.Limits(output_size_bytes=execution.output_size_bytes)
        if execution.wall_time_s:
            limits.wall_time.CopyFrom(_duration(execution.wall_time_s))
            # Whoever asks for more time means to use it.
            limits.cpu_time.CopyFrom(_duration(max(execution.wall_time_s, CPU_TIME_S)))
        request = sandbox_service_pb2.ExecRequest(
            tenant_id=scope.tenant_id,
            session_id=scope.session_id,
            fencing_token=scope.fencing_token,
            argv=execution.argv,
            stdin=execution.stdin,
            cwd=execution.cwd,
            env=execution.env,
            limits=limits,
            profile=profile(scope),
            origin=origin(scope, call),
        )
        return self._follow(self._stub.Exec, request, execution.wall_time_s or WALL_TIME_S)

    def run_python(self, scope: Scope, call: Call, source: str) -> Steps:
        request = sandbox_service_pb2.RunPythonRequest(
            tenant_id=scope.tenant_id,
            session_id=scope.session_id,
            fencing_token=scope.fencing_token,
            source=source,
            profile=profile(scope),
            origin=origin(scope, call),
        )
        return self._follow(self._stub.RunPython, request, WALL_TIME_S)

    async def _follow(self, method: Any, request: Any, wall_s: float) -> Steps:
        """Pass on what an execution says, and how it ended. Leaving the iteration ends it with all that it started."""
        async with aclosing(self._peer.stream(method, request, timeout_s=wall_s + MARGIN_S)) as answers:  # type: ignore[type-var]
            async for answer in answers:
                if answer.WhichOneof("event") == "exit":
                    end = answer.exit
                    yield Ended(end.outcome, end.exit_code, end.duration_ms, end.message)
                    return
                if answer.output.omitted_size_bytes:
                    note = f"\n[... {answer.output.omitted_size_bytes} bytes left out ...]\n"
                    yield answer.output.stream, note.encode()
                yield answer.output.stream, answer.output.data
        raise RetinueError.unavailable(SANDBOX, private="an execution ended without saying how")

    async def fence(self, scope: Scope) -> None:
        request = sandbox_service_pb2.OpenSessionRequest(
            tenant_id=scope.tenant_id,
            session_id=scope.session_id,
            fencing_token=scope.fencing_token,
            profile=profile(scope),
        )
        await self._peer.call(self._stub.OpenSession, request, timeout_s=OPEN_TIMEOUT_S)


class SandboxFiles:
    """A tenant's files, written under a scope's token. Every method raises RetinueError."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub: Any = FileServiceStub(peer.channel)

    async def read(
        self, scope: Scope, path: str, *, offset_bytes: int = 0, size_bytes: int = 0
    ) -> file_service_pb2.ReadFileResponse:
        """Read a file or a part of it; all of it if no size is given."""
        request = file_service_pb2.ReadFileRequest(
            tenant_id=scope.tenant_id, path=path, offset_bytes=offset_bytes, size_bytes=size_bytes
        )
        return await self._call(self._stub.ReadFile, request)  # type: ignore[no-any-return]

    async def write(
        self, scope: Scope, call: Call, path: str, data: bytes, *, expected_digest: str = ""
    ) -> file_service_pb2.FileInfo:
        """Write a file whole; with a digest, only if it holds that ("absent": if it is not there)."""
        request = file_service_pb2.WriteFileRequest(
            tenant_id=scope.tenant_id,
            path=path,
            session_id=scope.session_id,
            fencing_token=scope.fencing_token,
            data=data,
            expected_digest=expected_digest,
            origin=origin(scope, call),
        )
        return (await self._call(self._stub.WriteFile, request)).info  # type: ignore[no-any-return]

    async def edit(
        self, scope: Scope, call: Call, path: str, old: str, new: str, *, every: bool
    ) -> file_service_pb2.EditFileResponse:
        """Replace a text that is there just once, or every time it is there."""
        request = file_service_pb2.EditFileRequest(
            tenant_id=scope.tenant_id,
            path=path,
            session_id=scope.session_id,
            fencing_token=scope.fencing_token,
            old_text=old,
            new_text=new,
            all=every,
            origin=origin(scope, call),
        )
        return await self._call(self._stub.EditFile, request)  # type: ignore[no-any-return]

    async def list(
        self, scope: Scope, path: str, *, recursive: bool, page_size: int
    ) -> file_service_pb2.ListFilesResponse:
        """List a folder's first files."""
        request = file_service_pb2.ListFilesRequest(
            tenant_id=scope.tenant_id, path=path, recursive=recursive, page_size=page_size
        )
        return await self._call(self._stub.ListFiles, request)  # type: ignore[no-any-return]

    async def delete(self, scope: Scope, call: Call, path: str, *, recursive: bool) -> int:
        """Remove a file or a folder; answers how many are gone."""
        request = file_service_pb2.DeleteFileRequest(
            tenant_id=scope.tenant_id,
            path=path,
            session_id=scope.session_id,
            fencing_token=scope.fencing_token,
            recursive=recursive,
            origin=origin(scope, call),
        )
        return int((await self._call(self._stub.DeleteFile, request)).removed_count)

    async def _call(self, method: Any, request: Any) -> Any:
        return await self._peer.call(method, request, timeout_s=FILE_TIMEOUT_S)
