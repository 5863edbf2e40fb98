"""A sandbox that runs what it is asked for right here, in a folder of the tenant's, without any limit."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue.sandbox.v1 import sandbox_service_pb2_grpc
from retinue_kit import tenancy
from retinue_kit.server import Service
from retinue_sandbox.service import SandboxServicer

WORKSPACE = "/workspace"
CHUNK_SIZE = 100_000


class FakeBox(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Runs commands of the tenants that have a box; refuses those of the others as the service without a box does."""

    def __init__(self, folder: Path, *tenants: str) -> None:
        self.requests: list[pb.ExecRequest] = []
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

    async def Exec(self, request: pb.ExecRequest, context: Any) -> AsyncIterator[pb.ExecResponse]:
        self.requests.append(request)
        self.tenants_of_calls.append(tenancy.current().tenant_id)
        if request.tenant_id not in self._tenants:
            SandboxServicer().Exec(request, context)
        home = self.workspace(request.tenant_id)
        home.mkdir(exist_ok=True)
        pipe = subprocess.PIPE
        argv = [word.replace(WORKSPACE, str(home)) for word in request.argv]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)
        try:
            out, err = await asyncio.to_thread(process.communicate)
        finally:
            self.ended += 1
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        for stream, data in (("stdout", out.replace(str(home).encode(), WORKSPACE.encode())), ("stderr", err)):
            for start in range(0, len(data), CHUNK_SIZE):
                yield pb.ExecResponse(stream=stream, data=data[start : start + CHUNK_SIZE])
        yield pb.ExecResponse(stream="exit", exit_code=process.returncode)
