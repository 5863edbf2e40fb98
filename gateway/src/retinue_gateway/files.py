"""A tenant's files in the public API: the sandbox keeps them, and knows what a path may be.

Downloads over HTTP are `downloads.py`'s; those over gRPC, which has a status to end with, are served here.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import Any

from google.api import httpbody_pb2
from retinue.edge.v1 import file_service_pb2 as edge
from retinue.edge.v1 import file_service_pb2_grpc as edge_grpc
from retinue.sandbox.v1 import execution_pb2
from retinue.sandbox.v1 import file_service_pb2 as sandbox_wire
from retinue.sandbox.v1 import file_service_pb2_grpc as sandbox_grpc
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError

from retinue_gateway import fields
from retinue_gateway.calls import Context, caller_of
from retinue_gateway.credentials import Caller
from retinue_gateway.downloads import BYTES, Reader, content_type_of, headers_of

FILE_SIZE_MAX_BYTES = 4 << 20
"""Of a file that is uploaded; what a box has written may be larger, and is downloaded in parts."""

REQUEST_SIZE_MAX_BYTES = FILE_SIZE_MAX_BYTES + (64 << 10)
"""Of an upload as a message: the file, its path and its content type."""

PAGE_SIZE = 50
CALL_TIMEOUT_S = 10.0
"""A write waits for others of the tenant, a few seconds at most, and then for the disk."""

SIZE_SHOWN_MAX_BYTES = 2**31 - 1


class FileServicer(edge_grpc.FileServiceServicer):
    """Serves retinue.edge.v1.FileService; `content_types` are patterns of what is let in, separated by spaces."""

    def __init__(self, sandbox: Peer | None, content_types: str, reader: Reader) -> None:
        self._reader = reader
        self._sandbox = sandbox
        self._stub = sandbox_grpc.FileServiceStub(sandbox.channel) if sandbox else None
        self._content_types = content_types.split()

    async def ListFiles(self, request: edge.ListFilesRequest, context: Context) -> edge.ListFilesResponse:
        fields.check_storable(request)
        asked = sandbox_wire.ListFilesRequest(
            tenant_id=caller_of(context).tenant_id,
            path=request.folder,
            recursive=request.recursive,
            page_size=request.page_size or PAGE_SIZE,
            page_token=request.page_token,
        )
        try:
            answer: sandbox_wire.ListFilesResponse = await self._call("ListFiles", asked)
        except RetinueError as error:
            if error.metadata.get("field") != "path":
                raise
            raise RetinueError.field("folder", error.message.removeprefix("path: ")) from error
        return edge.ListFilesResponse(
            files=[_shown(found) for found in answer.files], next_page_token=answer.next_page_token
        )

    async def DownloadFile(
        self, request: edge.DownloadFileRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        fields.check_storable(request)
        kind = content_type_of(request.path)
        async with aclosing(self._reader.read(caller_of(context).tenant_id, request.path)) as parts:  # type: ignore[type-var]
            async for part in parts:
                if kind:
                    await context.send_initial_metadata(tuple(headers_of(request.path, part.info).items()))
                yield httpbody_pb2.HttpBody(content_type=kind, data=part.data)
                kind = ""  # told with the first part

    async def UploadFile(self, request: edge.UploadFileRequest, context: Context) -> edge.UploadFileResponse:
        caller = caller_of(context)
        fields.check_storable(request)
        self._check_content(request.body)
        asked = sandbox_wire.WriteFileRequest(
            tenant_id=caller.tenant_id, path=request.path, data=request.body.data, origin=_origin(caller, "upload")
        )
        answer: sandbox_wire.WriteFileResponse = await self._call("WriteFile", asked)
        return edge.UploadFileResponse(file=_shown(answer.info))

    async def DeleteFile(self, request: edge.DeleteFileRequest, context: Context) -> edge.DeleteFileResponse:
        caller = caller_of(context)
        fields.check_storable(request)
        asked = sandbox_wire.DeleteFileRequest(
            tenant_id=caller.tenant_id, path=request.path, origin=_origin(caller, "remove")
        )
        await self._call("DeleteFile", asked)
        return edge.DeleteFileResponse()

    def _check_content(self, body: httpbody_pb2.HttpBody) -> None:
        """Raise RetinueError(FIELD_INVALID or BODY_TOO_LARGE) for what is not let in."""
        kind = body.content_type.partition(";")[0].strip().lower() or BYTES
        if not any(fnmatchcase(kind, pattern) for pattern in self._content_types):
            text = f"must be one that is let in, such as {BYTES}; the body is the file's bytes and nothing else."
            raise RetinueError.field("content-type", text)
        if len(body.data) > FILE_SIZE_MAX_BYTES:
            raise RetinueError(
                Reason.BODY_TOO_LARGE, f"A file that is sent may have {FILE_SIZE_MAX_BYTES >> 20} MiB at most."
            )

    async def _call(self, method: str, request: object) -> Any:
        if self._sandbox is None:
            raise RetinueError(Reason.CAPABILITY_MISSING, "No files are kept in this deployment.", capability="sandbox")
        return await self._sandbox.call(getattr(self._stub, method), request, timeout_s=CALL_TIMEOUT_S)


def _origin(caller: Caller, tool: str) -> execution_pb2.Origin:
    return execution_pb2.Origin(principal=caller.principal, tool=tool)


def _shown(found: sandbox_wire.FileInfo) -> edge.File:
    return edge.File(
        path=found.path,
        kind=found.kind,
        size_bytes=min(found.size_bytes, SIZE_SHOWN_MAX_BYTES),
        modify_time=found.modify_time if found.HasField("modify_time") else None,
        digest=found.digest,
    )
