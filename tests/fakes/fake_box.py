"""A sandbox that runs what it is asked for right here, in a folder of the tenant's, without any limit."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from retinue.sandbox.v1 import execution_pb2, file_service_pb2_grpc, sandbox_service_pb2_grpc
from retinue.sandbox.v1 import file_service_pb2 as files
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue_kit import tenancy
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_kit.server import Service

WORKSPACE = "/workspace"
CHUNK_SIZE = 100_000
NO_BOX = "No box holds in this deployment."


class FakeBox(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Runs commands of the tenants that have a box; refuses those of the others as the service without a box does."""

    def __init__(self, folder: Path, *tenants: str) -> None:
        self.requests: list[pb.ExecRequest | pb.RunPythonRequest] = []
        self.closed: list[pb.CloseSessionRequest] = []
        self.tenants_of_calls: list[str] = []
        self.ended = 0
        self._folder = folder
        self._tenants = tenants

    def workspace(self, tenant_id: str) -> Path:
        """Name the folder that a tenant's commands know as /workspace."""
        return self._folder / tenant_id

    @property
    def service(self) -> Service:
        """Serve it."""
        name = pb.DESCRIPTOR.services_by_name["SandboxService"].full_name
        return Service(sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server, self, name)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        self.closed.append(request)
        return pb.CloseSessionResponse(closed=True)

    async def Exec(self, request: pb.ExecRequest, context: Any) -> AsyncIterator[pb.ExecResponse]:
        async for event in self._run(request, request.argv, request.stdin, request.cwd):
            yield pb.ExecResponse(**event)

    async def RunPython(self, request: pb.RunPythonRequest, context: Any) -> AsyncIterator[pb.RunPythonResponse]:
        async for event in self._run(request, [sys.executable, "-c", request.source], b"", ""):
            yield pb.RunPythonResponse(**event)

    async def _run(
        self, request: pb.ExecRequest | pb.RunPythonRequest, argv: Sequence[str], stdin: bytes, cwd: str
    ) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(request)
        self.tenants_of_calls.append(tenancy.current().tenant_id)
        if request.tenant_id not in self._tenants:
            raise RetinueError(Reason.SANDBOX_UNAVAILABLE, NO_BOX, check="fake")
        home = self.workspace(request.tenant_id)
        home.mkdir(parents=True, exist_ok=True)
        pipe = subprocess.PIPE
        words = [word.replace(WORKSPACE, str(home)) for word in argv]
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, cwd=home / cwd)
        try:
            out, err = await asyncio.to_thread(process.communicate, stdin)
        finally:
            self.ended += 1
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        for stream, data in (("stdout", out.replace(str(home).encode(), WORKSPACE.encode())), ("stderr", err)):
            for start in range(0, len(data), CHUNK_SIZE):
                yield {"output": execution_pb2.Output(stream=stream, data=data[start : start + CHUNK_SIZE])}
        yield {"exit": execution_pb2.Exit(outcome="exited", exit_code=process.returncode, duration_ms=1)}


class FakeFiles(file_service_pb2_grpc.FileServiceServicer):
    """Files of tenants, in memory; what they are asked for is kept."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.held: dict[tuple[str, str], bytes] = {}
        self.trouble: RetinueError | None = None
        """What writing fails with."""

    @property
    def service(self) -> Service:
        """Serve them."""
        name = files.DESCRIPTOR.services_by_name["FileService"].full_name
        return Service(file_service_pb2_grpc.add_FileServiceServicer_to_server, self, name)

    def _find(self, request: Any) -> bytes:
        self.requests.append(request)
        data = self.held.get((request.tenant_id, request.path))
        if data is None:
            raise RetinueError(Reason.FILE_NOT_FOUND, "There is no such file.")
        return data

    def _info(self, path: str, data: bytes) -> files.FileInfo:
        return files.FileInfo(path=path, kind="file", size_bytes=len(data), digest=hashlib.sha256(data).hexdigest())

    async def ReadFile(self, request: files.ReadFileRequest, context: Any) -> files.ReadFileResponse:
        data = self._find(request)
        end = request.offset_bytes + request.size_bytes if request.size_bytes else len(data)
        return files.ReadFileResponse(data=data[request.offset_bytes : end], info=self._info(request.path, data))

    async def WriteFile(self, request: files.WriteFileRequest, context: Any) -> files.WriteFileResponse:
        self.requests.append(request)
        if self.trouble is not None:
            raise self.trouble
        self.held[request.tenant_id, request.path] = request.data
        return files.WriteFileResponse(info=self._info(request.path, request.data))

    async def EditFile(self, request: files.EditFileRequest, context: Any) -> files.EditFileResponse:
        text = self._find(request).decode()
        count = text.count(request.old_text)
        if not count:
            raise RetinueError(Reason.EDIT_MISMATCH, "The old text is not there.", code=Code.FAILED_PRECONDITION)
        data = text.replace(request.old_text, request.new_text).encode()
        self.held[request.tenant_id, request.path] = data
        return files.EditFileResponse(info=self._info(request.path, data), replaced_count=count)

    async def ListFiles(self, request: files.ListFilesRequest, context: Any) -> files.ListFilesResponse:
        self.requests.append(request)
        held = sorted((path, data) for (tenant_id, path), data in self.held.items() if tenant_id == request.tenant_id)
        return files.ListFilesResponse(files=[self._info(path, data) for path, data in held])

    async def DeleteFile(self, request: files.DeleteFileRequest, context: Any) -> files.DeleteFileResponse:
        self._find(request)
        del self.held[request.tenant_id, request.path]
        return files.DeleteFileResponse(removed_count=1)
