"""Files on their way out, part by part: to clients of HTTP by ASGI, and to callers of gRPC by `files.py`.

Envoy's transcoder drops the status of a stream that fails behind its first byte, and ends the answer as if it were
whole. So what HTTP is answered with does not pass through it: ASGI's answer has a length, and breaks off if it fails.
"""

import mimetypes
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from opentelemetry.trace import SpanKind
from retinue.edge.v1 import file_service_pb2 as edge
from retinue.sandbox.v1 import file_service_pb2 as wire
from retinue.sandbox.v1 import file_service_pb2_grpc as wire_grpc
from retinue_kit import telemetry, tenancy
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import validate

from retinue_gateway import asgi, encode, fields
from retinue_gateway.credentials import Credentials

PREFIX = "/v1/files/"
"""What the paths of files begin with."""

PART_SIZE_BYTES = 256 * 1024
"""Of a part, as the contract bounds it; a few of them are what one download holds in memory, however large its file."""

PART_TIMEOUT_S = 10.0
"""For one part to be read from the disk. What the whole may take is Envoy's to bound, as its client sets the pace."""

DOWNLOADS_MAX = 256
"""Files on their way out of this process at once; each holds about 1 MiB."""

TENANT_DOWNLOADS_MAX = 32
"""Those of one tenant, so that no one takes all places."""

RETRY_AFTER_S = 1.0

BYTES = "application/octet-stream"
"""What nobody has named."""

HEADERS = {
    # What a tenant's agent has written is for keeping: a browser shows and runs nothing of it.
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'",
}
_TYPES = mimetypes.MimeTypes()
"""By the ending of a name, the same on every machine: the system's own lists are not read."""

for _kind, _ending in (
    ("text/markdown", ".md"),
    ("application/yaml", ".yaml"),
    ("application/yaml", ".yml"),
    ("application/toml", ".toml"),
    ("application/jsonl", ".jsonl"),
):
    _TYPES.add_type(_kind, _ending)


class Reader:
    """Reads files from the sandbox."""

    def __init__(self, sandbox: Peer | None) -> None:
        self._sandbox = sandbox
        self._stub = wire_grpc.FileServiceStub(sandbox.channel) if sandbox else None
        self._counts: Counter[str] = Counter()

    async def read(self, tenant_id: str, path: str) -> AsyncIterator[wire.ReadFileResponse]:
        """Read a file in parts of PART_SIZE_BYTES, at least one; the last may be shorter.

        Every part is of the same file: the last comes only once the file was seen to be as it was before the first.
        Raises RetinueError: FILE_CHANGED where it was written meanwhile, QUEUE_FULL, and what the sandbox refuses with.
        """
        with self._place(tenant_id):
            part = await self._part(tenant_id, path, 0)
            first, offset = part.info, 0
            while True:
                rest = first.size_bytes - offset
                if len(part.data) != min(rest, PART_SIZE_BYTES):
                    raise _changed()
                if rest <= PART_SIZE_BYTES:
                    break
                yield part
                offset += PART_SIZE_BYTES
                part = await self._again(tenant_id, path, offset, first)
            if offset:  # what was read in one step has been looked at while it was read
                await self._again(tenant_id, path, first.size_bytes, first)
            yield part

    async def _again(self, tenant_id: str, path: str, offset: int, first: wire.FileInfo) -> wire.ReadFileResponse:
        """Read another part. Raises RetinueError(FILE_CHANGED) unless the file is what it was at first."""
        try:
            part = await self._part(tenant_id, path, offset)
        except RetinueError as error:
            if error.reason is Reason.FILE_NOT_FOUND:
                raise _changed() from error
            raise
        if (part.info.size_bytes, part.info.modify_time) != (first.size_bytes, first.modify_time):
            raise _changed()
        return part

    async def _part(self, tenant_id: str, path: str, offset: int) -> wire.ReadFileResponse:
        if self._sandbox is None:
            raise RetinueError(Reason.CAPABILITY_MISSING, "No files are kept in this deployment.", capability="sandbox")
        request = wire.ReadFileRequest(tenant_id=tenant_id, path=path, offset_bytes=offset, size_bytes=PART_SIZE_BYTES)
        stub: Any = self._stub
        found: wire.ReadFileResponse = await self._sandbox.call(stub.ReadFile, request, timeout_s=PART_TIMEOUT_S)
        return found

    @contextmanager
    def _place(self, tenant_id: str) -> Iterator[None]:
        if self._counts.total() >= DOWNLOADS_MAX or self._counts[tenant_id] >= TENANT_DOWNLOADS_MAX:
            text = "Too many files are on their way; try again."
            raise RetinueError(Reason.QUEUE_FULL, text, retry_after_s=RETRY_AFTER_S)
        self._counts[tenant_id] += 1
        try:
            yield
        finally:
            self._counts[tenant_id] -= 1
            if not self._counts[tenant_id]:
                del self._counts[tenant_id]


class Downloads:
    """Serves GET beneath PREFIX."""

    def __init__(self, reader: Reader, credentials: Credentials) -> None:
        self._reader = reader
        self._credentials = credentials

    async def serve(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request, as ASGI calls it. What breaks off raises ConnectionError, so that its connection ends."""
        request = asgi.Request(scope, receive, send)
        parent = request.headers.get("traceparent", "")
        with telemetry.span("files.download", kind=SpanKind.SERVER, traceparent=parent) as span:
            try:
                caller = self._credentials.admit(request.headers)
                tenancy.enter(caller.identity)
                span.set_attribute("tenant.id", caller.tenant_id)
                await request.body()
                if scope["method"] != "GET":
                    raise RetinueError(Reason.ROUTE_NOT_FOUND, "There is nothing at this path for this method.")
                await self._send(request, caller.tenant_id, _path_of(scope))
            except ConnectionError:
                raise
            except Exception as error:
                telemetry.fail(span, str(encode.error(error).reason))
                await asgi.refuse(request, error)

    async def _send(self, request: asgi.Request, tenant_id: str, path: str) -> None:
        with request.watched() as left:
            async with aclosing(self._reader.read(tenant_id, path)) as parts:  # type: ignore[type-var]
                async for part in parts:
                    if left.done():  # what is sent to nobody is thrown away in silence
                        raise ConnectionError("the client left")
                    if not request.begun:
                        headers = {**headers_of(path, part.info), "content-length": str(part.info.size_bytes)}
                        await request.begin(200, content_type_of(path), headers)
                    await request.write(part.data)
            await request.write(b"", more=False)


def headers_of(path: str, info: wire.FileInfo) -> dict[str, str]:
    """Name what is told of a file beside its bytes and their content type."""
    name = quote(path.rsplit("/", 1)[-1], safe="")
    # The digest is known of what was read in one step; of a larger file, when it was written last, and its size.
    tag = f'"{info.digest}"' if info.digest else f'W/"{info.size_bytes:x}-{info.modify_time.ToNanoseconds():x}"'
    return {**HEADERS, "content-disposition": f"attachment; filename*=UTF-8''{name}", "etag": tag}


def content_type_of(path: str) -> str:
    """Name the content type of a file by the ending of its name."""
    kind, encoding = _TYPES.guess_type(path.rsplit("/", 1)[-1])
    return BYTES if kind is None or encoding else kind


def _path_of(scope: asgi.Scope) -> str:
    """Read which file is asked for. Raises RetinueError(FIELD_INVALID)."""
    raw: bytes = scope["raw_path"]
    try:
        path = unquote_to_bytes(raw.removeprefix(PREFIX.encode())).decode()
    except UnicodeDecodeError:
        raise RetinueError.field("path", "must be UTF-8.") from None
    asked = edge.DownloadFileRequest(path=path)
    validate(asked)
    fields.check_storable(asked)
    return path


def _changed() -> RetinueError:
    return RetinueError(Reason.FILE_CHANGED, "The file was written while it was read; read it again.")
