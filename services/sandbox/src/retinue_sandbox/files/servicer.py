"""The wire of file calls: decode, one operation in a thread, encode."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from retinue.sandbox.v1 import execution_pb2, file_service_pb2_grpc
from retinue.sandbox.v1 import file_service_pb2 as pb
from retinue_kit import metrics
from retinue_kit.errors import RetinueError
from retinue_kit.server import Service

from retinue_sandbox.files import operations, removing
from retinue_sandbox.files.listing import Info
from retinue_sandbox.files.operations import Change
from retinue_sandbox.files.paths import parts_of
from retinue_sandbox.files.quota import Quota
from retinue_sandbox.files.roots import FILES, Roots

PAGE_SIZE = 200
"""Files in a page where a caller does not say."""

NAME = pb.DESCRIPTOR.services_by_name["FileService"].full_name

INSTANT_MIN_NS, INSTANT_MAX_NS = -62_135_596_800 * 10**9, 253_402_300_799 * 10**9
"""The years 1 to 9999, which are all that a Timestamp can say. Whoever owns a file may give it any."""

Context = grpc.aio.ServicerContext[Any, Any]
Fence = Callable[[str, str, int], None]
"""Given a tenant's id, a session's and a fencing token, raises RetinueError(STALE_FENCING_TOKEN) for one that is lower
than any seen. It is called from the loop and from other threads."""

Record = Callable[..., None]
"""Writes down what was changed, as `audit.Audit.record` does. Called from the loop's thread."""

Require = Callable[[], Awaitable[None]]
"""Raises RetinueError(SANDBOX_UNAVAILABLE) unless boxes hold."""

R = TypeVar("R")
Facts = dict[str, str | int]

file_calls = metrics.counter("sandbox_file_calls", "Calls for tenants' files.", ["call", "outcome"])
"""Outcomes: ok, and the reasons of refusals."""


class _Ledger:
    """A tenant's part of the quota."""

    def __init__(self, quota: Quota, tenant_id: str) -> None:
        self.admit = partial(quota.admit, tenant_id)
        self.add = partial(quota.add, tenant_id)


class FileServicer(file_service_pb2_grpc.FileServiceServicer):
    """Implements retinue.sandbox.v1.FileService."""

    def __init__(
        self, roots: Roots, fence: Fence, record: Record | None = None, require: Require | None = None
    ) -> None:
        """`require` is asked before a tool's call: without a working box no tool changes anything. People's files are
        no tool's business.
        """
        self._require = require
        self._roots = roots
        self._fence = fence
        self._record = record

    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> pb.ReadFileResponse:
        with _counted("read"):
            parts = parts_of(request.path)

            def work() -> tuple[bytes, Info]:
                with self._roots.entered(request.tenant_id, request.root or FILES) as root:
                    return operations.read(root, parts, request.offset_bytes, request.size_bytes)

            data, info = await self._roots.turns.run(request.tenant_id, work)
            return pb.ReadFileResponse(data=data, info=_shown(info))

    async def WriteFile(self, request: pb.WriteFileRequest, context: Context) -> pb.WriteFileResponse:
        with _counted("write"):
            parts, check = parts_of(request.path), await self._check(request)

            def work() -> Change:
                with self._roots.entered(request.tenant_id, request.root or FILES, lock=True) as root:
                    ledger = self._ledger(request.tenant_id)
                    return operations.write(root, parts, request.data, request.expected_digest, ledger, check)

            info = (await self._change("write", request, work, _facts)).info
            return pb.WriteFileResponse(info=_shown(info))

    async def EditFile(self, request: pb.EditFileRequest, context: Context) -> pb.EditFileResponse:
        with _counted("edit"):
            parts, check = parts_of(request.path), await self._check(request)
            old, new = request.old_text.encode(), request.new_text.encode()

            def work() -> Change:
                with self._roots.entered(request.tenant_id, request.root or FILES, lock=True) as root:
                    ledger = self._ledger(request.tenant_id)
                    return operations.edit(root, parts, old, new, request.all, request.expected_digest, ledger, check)

            change = await self._change("edit", request, work, _facts)
            return pb.EditFileResponse(info=_shown(change.info), replaced_count=change.replaced_count)

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        with _counted("list"):
            parts, size = parts_of(request.path, root=True), request.page_size or PAGE_SIZE

            def work() -> tuple[list[Info], str]:
                with self._roots.entered(request.tenant_id, request.root or FILES) as root:
                    return operations.list_page(root, parts, request.page_token, recursive=request.recursive, size=size)

            found, token = await self._roots.turns.run(request.tenant_id, work)
            return pb.ListFilesResponse(files=[_shown(info) for info in found], next_page_token=token)

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> pb.DeleteFileResponse:
        with _counted("delete"):
            parts, check = parts_of(request.path), await self._check(request)

            def work() -> int:
                with self._roots.entered(request.tenant_id, request.root or FILES, lock=True) as root:
                    ledger = self._ledger(request.tenant_id)
                    return removing.delete(root, parts, request.recursive, ledger, check)

            removed = await self._change("delete", request, work, lambda removed: {"removed_count": removed})
            return pb.DeleteFileResponse(removed_count=removed)

    async def _check(self, request: Any) -> operations.Check:
        """Refuse a tool's call where no box holds, and an overtaken attempt; answer what refuses that at the last
        moment.
        """
        if self._require is not None and request.origin.call_id:
            await self._require()
        if not request.fencing_token:
            return lambda: None
        check = partial(self._fence, request.tenant_id, request.session_id, request.fencing_token)
        check()
        return check

    def _ledger(self, tenant_id: str) -> _Ledger:
        return _Ledger(self._roots.quota, tenant_id)

    async def _change(self, call: str, request: Any, work: Callable[[], R], facts: Callable[[R], Facts]) -> R:
        """Have something changed and written down, even where whoever asked for it has stopped waiting."""
        loop, context = asyncio.get_running_loop(), copy_context()

        def changing() -> R:
            result = work()
            # Runs before whoever waits is told, since the loop does one thing after the other.
            loop.call_soon_threadsafe(partial(self._note, call, request, facts(result)), context=context)
            return result

        return await self._roots.turns.run(request.tenant_id, changing)

    def _note(self, call: str, request: Any, facts: Facts) -> None:
        if self._record is None:
            return
        origin: execution_pb2.Origin = request.origin
        self._record(
            f"file_{call}",
            tenant_id=request.tenant_id,
            session_id=request.session_id,
            fencing_token=request.fencing_token,
            principal=origin.principal,
            run_id=origin.run_id,
            call_id=origin.call_id,
            tool=origin.tool,
            approval_id=origin.approval_id,
            root=request.root or FILES,
            path=request.path,
            **facts,
        )


def service(roots: Roots, fence: Fence, record: Record | None = None, require: Require | None = None) -> Service:
    """Make the service; `record` is told of each change before its call is answered, `require` as FileServicer says."""
    add = file_service_pb2_grpc.add_FileServiceServicer_to_server
    return Service(add, FileServicer(roots, fence, record, require), NAME)


@contextmanager
def _counted(call: str) -> Iterator[None]:
    try:
        yield
    except RetinueError as error:
        file_calls.labels(call, error.reason).inc()
        raise
    file_calls.labels(call, "ok").inc()


def _facts(change: Change) -> Facts:
    return {"size_bytes": change.info.size_bytes, "digest_before": change.digest_before, "digest": change.info.digest}


def _shown(info: Info) -> pb.FileInfo:
    shown = pb.FileInfo(path=info.path, kind=info.kind, size_bytes=info.size_bytes, digest=info.digest)
    if info.modify_time_ns:
        instant = Timestamp()
        instant.FromNanoseconds(min(max(info.modify_time_ns, INSTANT_MIN_NS), INSTANT_MAX_NS))
        shown.modify_time.CopyFrom(instant)
    return shown
