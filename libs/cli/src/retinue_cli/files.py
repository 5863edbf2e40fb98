"""Calls for the files of one tenant."""

from collections.abc import Iterator
from typing import Any

from retinue.sandbox.v1 import execution_pb2
from retinue.sandbox.v1 import file_service_pb2 as files
from retinue.sandbox.v1 import file_service_pb2_grpc as files_grpc

from retinue_cli.failures import CommandError
from retinue_cli.mesh import OPERATOR, Mesh, call

PIECE_SIZE_BYTES = 1 << 20
"""Read at once: what a channel takes without being told to take more."""

PAGE_SIZE = 1000
"""The most that one call answers with, by contract."""


class Files:
    """The files of a tenant, by the mesh's own sockets."""

    def __init__(self, mesh: Mesh, tenant_id: str) -> None:
        channel: Any = mesh.channel("sandbox")
        self._stub: Any = files_grpc.FileServiceStub(channel)
        self._tenant_id = tenant_id

    def list(self, folder: str, *, recursive: bool) -> "list[files.FileInfo]":
        """List all files of a folder, sorted by path."""
        found: list[files.FileInfo] = []
        request = files.ListFilesRequest(
            tenant_id=self._tenant_id, path=folder, recursive=recursive, page_size=PAGE_SIZE
        )
        while True:
            answer: files.ListFilesResponse = call(self._stub.ListFiles, request)
            found.extend(answer.files)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def read(self, path: str) -> Iterator[bytes]:
        """Read a file in pieces of PIECE_SIZE_BYTES, at least one. CommandError if it is written meanwhile.

        The last piece comes only once the file was seen to be as it was before the first.
        """
        request = files.ReadFileRequest(tenant_id=self._tenant_id, path=path, size_bytes=PIECE_SIZE_BYTES)
        piece: files.ReadFileResponse = call(self._stub.ReadFile, request)
        first = piece.info
        while True:
            rest = first.size_bytes - request.offset_bytes
            if len(piece.data) != min(rest, PIECE_SIZE_BYTES):
                raise _changed()
            if rest <= PIECE_SIZE_BYTES:
                break
            yield piece.data
            piece = self._again(request, request.offset_bytes + PIECE_SIZE_BYTES, first)
        if request.offset_bytes:
            self._again(request, first.size_bytes, first)
        yield piece.data

    def _again(self, request: files.ReadFileRequest, offset: int, first: files.FileInfo) -> files.ReadFileResponse:
        """Read another piece. CommandError unless the file is what it was at first."""
        request.offset_bytes = offset
        piece: files.ReadFileResponse = call(self._stub.ReadFile, request)
        if (piece.info.size_bytes, piece.info.modify_time) != (first.size_bytes, first.modify_time):
            raise _changed()
        return piece

    def write(self, path: str, data: bytes) -> files.FileInfo:
        """Write a file whole."""
        request = files.WriteFileRequest(tenant_id=self._tenant_id, path=path, data=data, origin=_origin("put"))
        answer: files.WriteFileResponse = call(self._stub.WriteFile, request)
        return answer.info

    def remove(self, path: str, *, recursive: bool) -> int:
        """Remove a file or folder; answers how many went."""
        request = files.DeleteFileRequest(
            tenant_id=self._tenant_id, path=path, recursive=recursive, origin=_origin("remove")
        )
        answer: files.DeleteFileResponse = call(self._stub.DeleteFile, request)
        return answer.removed_count


def _origin(tool: str) -> execution_pb2.Origin:
    return execution_pb2.Origin(principal=OPERATOR, tool=tool)


def _changed() -> CommandError:
    return CommandError("The file was written while it was read; what was read is no whole.")
