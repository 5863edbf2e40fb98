"""The wire."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from retinue.sandbox.v1 import execution_pb2, sandbox_service_pb2_grpc
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue_kit.server import Service

from retinue_sandbox import limits
from retinue_sandbox.executions import Executions, Order, Origin
from retinue_sandbox.fitness import Fitness
from retinue_sandbox.ports import Backend, Command, Exit, Piece, Source
from retinue_sandbox.sessions import Caller, Sessions

Context = grpc.aio.ServicerContext[Any, Any]

NAME = pb.DESCRIPTOR.services_by_name["SandboxService"].full_name

INT32_MAX = 2**31 - 1


class SandboxServicer(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Implements retinue.sandbox.v1.SandboxService."""

    def __init__(self, executions: Executions, sessions: Sessions, fitness: Fitness, backend: Backend) -> None:
        self._executions = executions
        self._sessions = sessions
        self._fitness = fitness
        self._backend = backend

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        checks = await self._fitness.found()
        available = self._fitness.failed is None
        return pb.DescribeResponse(
            backend=self._backend.name,
            isolation=str(self._backend.isolation or ""),
            available=available,
            checks=[
                pb.Check(
                    name=check.name,
                    ok=check.ok,
                    detail=check.detail,
                    remedy="" if check.ok else check.remedy,
                    required=check.required,
                )
                for check in checks
            ],
            session_count=self._sessions.count,
        )

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        isolation, reused = await self._executions.open(_caller(request), limits.profile(request.profile))
        return pb.OpenSessionResponse(isolation=str(isolation), reused=reused)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        return pb.CloseSessionResponse(closed=await self._sessions.close_session(_caller(request)))

    async def Exec(self, request: pb.ExecRequest, context: Context) -> AsyncIterator[pb.ExecResponse]:
        order = Order(
            _caller(request),
            limits.profile(request.profile),
            Command(list(request.argv), request.stdin, request.cwd, dict(request.env)),
            limits.read(request.limits),
            request.one_shot,
            _origin(request.origin),
        )
        async with aclosing(self._executions.run(order)) as items:
            async for item in items:
                if isinstance(item, Piece):
                    yield pb.ExecResponse(output=_output(item))
                else:
                    yield pb.ExecResponse(exit=_exit(item))

    async def RunPython(self, request: pb.RunPythonRequest, context: Context) -> AsyncIterator[pb.RunPythonResponse]:
        order = Order(
            _caller(request),
            limits.profile(request.profile),
            Source(request.source),
            limits.read(request.limits),
            False,
            _origin(request.origin),
        )
        async with aclosing(self._executions.run(order)) as items:
            async for item in items:
                if isinstance(item, Piece):
                    yield pb.RunPythonResponse(output=_output(item))
                else:
                    yield pb.RunPythonResponse(exit=_exit(item))


def service(servicer: SandboxServicer) -> Service:
    """Serve it."""
    return Service(sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server, servicer, NAME)


def _caller(request: pb.OpenSessionRequest | pb.CloseSessionRequest | pb.ExecRequest | pb.RunPythonRequest) -> Caller:
    return Caller(request.tenant_id, request.session_id, request.fencing_token)


def _origin(told: execution_pb2.Origin) -> Origin:
    return Origin(told.run_id, told.call_id, told.tool, told.principal, told.approval_id)


def _output(piece: Piece) -> execution_pb2.Output:
    return execution_pb2.Output(stream=piece.stream, data=piece.data, omitted_size_bytes=piece.omitted_bytes)


def _exit(end: Exit) -> execution_pb2.Exit:
    return execution_pb2.Exit(
        outcome=str(end.outcome),
        exit_code=end.exit_code,
        duration_ms=min(end.duration_ms, INT32_MAX),
        cpu_ms=min(end.cpu_ms, INT32_MAX),
        memory_size_bytes=min(end.memory_bytes, 2**63 - 1),
        message=end.message,
    )
