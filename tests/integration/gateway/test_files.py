"""Files in the public API: the caller's own, of what is let in, and each failure as what it is."""

import os

import grpc
import pytest
import pytest_asyncio
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from retinue.edge.v1 import file_service_pb2 as edge
from retinue.edge.v1 import file_service_pb2_grpc as edge_grpc
from retinue.sandbox.v1 import file_service_pb2 as wire
from retinue.sandbox.v1 import file_service_pb2_grpc as wire_grpc
from retinue_gateway import downloads, files
from retinue_gateway.config import UPLOAD_CONTENT_TYPES
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Server, Service

NAME = "retinue.edge.v1.FileService"
OTHER_MAX_BYTES = 1 << 20
CALLER = (("x-retinue-tenant", "ten_a"), ("x-retinue-principal", "usr_1"), ("x-retinue-scope", "chat"))


class FakeSandbox(wire_grpc.FileServiceServicer):
    """Remembers what it was asked, and fails as a test wants."""

    def __init__(self):
        self.asked = []
        self.trouble = None
        self.held = b"x"
        self.written = 1
        self.reads = 0
        self.on_read = lambda count: None

    def _asked(self, request):
        self.asked.append(request)
        if self.trouble:
            raise self.trouble

    async def WriteFile(self, request, context):
        self._asked(request)
        info = wire.FileInfo(path=request.path, kind="file", size_bytes=len(request.data), digest="d1")
        return wire.WriteFileResponse(info=info)

    async def ReadFile(self, request, context):
        self._asked(request)
        self.reads += 1
        self.on_read(self.reads - 1)
        info = wire.FileInfo(path=request.path, kind="file", size_bytes=len(self.held), digest="d1")
        info.modify_time.FromNanoseconds(self.written)
        end = request.offset_bytes + request.size_bytes
        return wire.ReadFileResponse(data=self.held[request.offset_bytes : end], info=info)

    async def ListFiles(self, request, context):
        self._asked(request)
        large = wire.FileInfo(path="a", kind="file", size_bytes=1 << 40)
        return wire.ListFilesResponse(files=[large], next_page_token="t")


@pytest_asyncio.fixture
async def edge_of(run_dir, peer):
    """Answer a starter of gateways with nothing but files, for a sandbox at an address."""
    opened = []

    async def start(address):
        sandbox = peer("sandbox", address) if address else None
        add = edge_grpc.add_FileServiceServicer_to_server
        servicer = files.FileServicer(sandbox, UPLOAD_CONTENT_TYPES, downloads.Reader(sandbox))
        kept = Service(add, servicer, NAME, files.REQUEST_SIZE_MAX_BYTES)
        server = Server(f"unix:{run_dir}/gateway.sock", [kept], request_size_max_bytes=OTHER_MAX_BYTES)
        await server.start()
        channel = grpc.aio.insecure_channel(server.address, [("grpc.default_authority", "gateway")])
        opened.append((server, channel))
        return edge_grpc.FileServiceStub(channel)

    yield start
    for server, channel in opened:
        await channel.close()
        await server.drain(0)


@pytest.fixture
def sandbox():
    return FakeSandbox()


@pytest_asyncio.fixture
async def kept(serve, sandbox, edge_of):
    add = wire_grpc.add_FileServiceServicer_to_server
    return await edge_of(await serve([Service(add, sandbox, "retinue.sandbox.v1.FileService")]))


def upload(kept, data=b"x", kind="text/plain", path="a.txt"):
    body = HttpBody(content_type=kind, data=data)
    return kept.UploadFile(edge.UploadFileRequest(path=path, body=body), metadata=CALLER, timeout=20)


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(raised.value).details[0].Unpack(info)
    return raised.value.code(), info.reason, dict(info.metadata)


async def received(kept, metadata=CALLER, parts=None):
    parts = [] if parts is None else parts
    call = kept.DownloadFile(edge.DownloadFileRequest(path="x.txt"), metadata=metadata, timeout=20)
    async for part in call:
        parts.append(part)
    return parts


async def test_no_cross_tenant_whose_files_they_are_comes_from_the_token(kept, sandbox):
    made = (await upload(kept)).file
    assert (made.path, made.size_bytes, made.digest) == ("a.txt", 1, "d1")
    (asked,) = sandbox.asked
    assert (asked.tenant_id, asked.root, asked.fencing_token, asked.origin.principal) == ("ten_a", "", 0, "usr_1")
    listed = await kept.ListFiles(edge.ListFilesRequest(folder="f"), metadata=CALLER)
    assert (listed.files[0].size_bytes, listed.next_page_token) == (2**31 - 1, "t")
    assert (sandbox.asked[-1].path, sandbox.asked[-1].page_size, sandbox.asked[-1].root) == ("f", 50, "")
    assert (await refused(kept.ListFiles(edge.ListFilesRequest())))[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("kind", "let_in"),
    [
        ("", True),
        ("text/x-anything", True),
        ("Application/JSON ; charset=utf-8", True),
        ("application/ld+json", True),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", True),
        ("multipart/form-data; boundary=x", False),
        ("application/x-www-form-urlencoded", False),
        ("application/x-executable", False),
        ("text", False),
        ("nothing, text/plain", False),
    ],
)
async def test_what_is_an_envelope_or_a_program_is_not_let_in(kept, sandbox, kind, let_in):
    if let_in:
        await upload(kept, kind=kind)
        assert len(sandbox.asked) == 1
        return
    invalid = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", {"field": "content-type"})
    assert await refused(upload(kept, kind=kind)) == invalid
    assert sandbox.asked == []


async def test_bounded_a_file_may_be_larger_than_other_requests_to_the_same_server(kept, sandbox):
    await upload(kept, data=b"x" * files.FILE_SIZE_MAX_BYTES)
    assert len(sandbox.asked[0].data) > OTHER_MAX_BYTES
    for more in (1, 1 << 16):
        too_large = await refused(upload(kept, data=b"x" * (files.FILE_SIZE_MAX_BYTES + more)))
        assert too_large[1] == "BODY_TOO_LARGE"
    assert len(sandbox.asked) == 1


async def test_what_is_read_is_for_keeping_and_not_for_running(kept):
    for name, kind in (
        ("a.html", "text/html"),
        ("a.md", "text/markdown"),
        ("a", "application/octet-stream"),
        ("a.svg.gz", "application/octet-stream"),
    ):
        call = kept.DownloadFile(edge.DownloadFileRequest(path=f"d/{name}"), metadata=CALLER)
        assert [(body.content_type, body.data) async for body in call] == [(kind, b"x")]
        headers = dict(await call.initial_metadata())
        assert headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"
    odd = kept.DownloadFile(edge.DownloadFileRequest(path='é"\r\nx: y;.txt'), metadata=CALLER)
    assert [body.data async for body in odd] == [b"x"]
    disposition = dict(await odd.initial_metadata())["content-disposition"]
    assert disposition == "attachment; filename*=UTF-8''%C3%A9%22%0D%0Ax%3A%20y%3B.txt"


PART = downloads.PART_SIZE_BYTES


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 7])
async def test_bounded_a_file_of_any_size_comes_in_parts_that_are_it_when_put_together(kept, sandbox, size):
    sandbox.held = os.urandom(size)
    parts = await received(kept)
    assert b"".join(part.data for part in parts) == sandbox.held
    assert [part.content_type for part in parts] == ["text/plain", *[""] * (len(parts) - 1)]
    assert len(parts) == max(1, -(-size // PART))
    assert max(len(part.data) for part in parts) <= PART
    assert {request.size_bytes for request in sandbox.asked} == {PART}


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_a_file_that_changes_at_any_time_before_its_last_part_is_never_told_as_whole(kept, sandbox, after):
    """The last look comes behind the last part's reading, and before its sending."""
    sandbox.held = b"x" * (2 * PART + 1)

    def write(count):
        if count == after:
            sandbox.written += 1

    sandbox.on_read = write
    parts = []
    assert (await refused(received(kept, parts=parts)))[:2] == (grpc.StatusCode.ABORTED, "FILE_CHANGED")
    assert len(parts) < 3
    sandbox.on_read = lambda _: None
    assert len(await received(kept)) == 3


async def test_bounded_downloads_at_once_are_counted(kept, sandbox, monkeypatch):
    monkeypatch.setattr(downloads, "TENANT_DOWNLOADS_MAX", 1)
    sandbox.held = b"x" * (64 * PART)
    first = kept.DownloadFile(edge.DownloadFileRequest(path="a"), metadata=CALLER, timeout=20)
    rest = aiter(first)
    assert (await anext(rest)).data
    assert (await refused(received(kept)))[1] == "QUEUE_FULL"
    other = (("x-retinue-tenant", "ten_b"), *CALLER[1:])
    assert len(await received(kept, metadata=other)) == 64
    assert [len(body.data) async for body in rest] == [PART] * 63
    assert len(await received(kept)) == 64


async def test_failures_arrive_as_what_they_are(kept, sandbox):
    sandbox.trouble = RetinueError.field("path", "must be shorter.")
    listing = kept.ListFiles(edge.ListFilesRequest(folder="x"), metadata=CALLER)
    assert (await refused(listing))[2] == {"field": "folder"}
    sandbox.trouble = RetinueError(Reason.QUOTA_EXCEEDED, "Too much.")
    assert (await refused(upload(kept)))[1] == "QUOTA_EXCEEDED"
    sandbox.trouble = RetinueError(Reason.FILE_NOT_FOUND, "There is no such file.")
    assert (await refused(received(kept)))[:2] == (grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND")
    assert (await refused(upload(kept, path="a\0b")))[2] == {"field": "path"}


async def test_without_a_sandbox_there_are_no_files(edge_of):
    kept = await edge_of("")
    assert (await refused(upload(kept)))[1:] == ("CAPABILITY_MISSING", {"capability": "sandbox"})


async def test_a_sandbox_that_is_away_is_said_to_be(edge_of, run_dir):
    kept = await edge_of(f"unix:{run_dir}/nobody.sock")
    assert (await refused(upload(kept)))[:2] == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
