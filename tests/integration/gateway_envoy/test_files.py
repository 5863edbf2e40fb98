"""Files through Envoy: bytes of any kind, whatever they are called, up to a bound of their own."""

import hashlib
import os

import httpx
import pytest
import pytest_asyncio
from refusals import assert_refused
from retinue_gateway import envoy_filters
from retinue_gateway.downloads import PART_SIZE_BYTES
from retinue_kit.server import Server
from retinue_sandbox.files import servicer
from retinue_sandbox.files.roots import Roots

SIZE_MAX_BYTES = envoy_filters.FILE_SIZE_MAX_BYTES
LARGE = 32 << 20
"""Bytes, far more than what Envoy and the sockets before and behind it hold."""


@pytest_asyncio.fixture
async def folder(mesh, run_dir):
    """Where the files of the mesh's tenants are, kept by a sandbox."""
    roots = Roots(run_dir / "workspaces", lambda tenant_id: os.geteuid())
    server = Server(f"unix:{run_dir}/sandbox.sock", [servicer.service(roots, lambda *_: None)])
    await server.start()
    yield run_dir / "workspaces"
    await server.drain(0)
    roots.close()


@pytest_asyncio.fixture
async def files(mesh, folder, client):
    """A client of the tenant `ten_1`."""
    client.headers.update(mesh.bearer())
    client.base_url = httpx.URL(f"{mesh.url}/v1/files/")
    return client


def names(tenant):
    return sorted(str(path.relative_to(tenant)) for path in tenant.rglob("*") if path.is_file())


async def test_bytes_of_any_kind_arrive_as_they_are_and_come_back_so(files, folder):
    for kind, body in (
        ("application/octet-stream", os.urandom(SIZE_MAX_BYTES)),
        ("application/json", b'{"not": "json'),
        ("text/plain; charset=utf-8", b"\xff\x00"),
        ("IMAGE/PNG", b"\x89PNG"),
        (None, b"x"),
        ("text/plain", b""),
    ):
        made = await files.post("d/a.txt", content=body, headers={"content-type": kind} if kind else {})
        assert made.status_code == 200, made.text
        file = made.json()["file"]
        assert (file["path"], file["kind"], file["size_bytes"]) == ("d/a.txt", "file", len(body))
        assert (folder / "ten_1/files/d/a.txt").read_bytes() == body
        read = await files.get("d/a.txt")
        assert (read.status_code, read.content, read.headers["content-length"]) == (200, body, str(len(body)))
        if len(body) <= PART_SIZE_BYTES:
            assert read.headers["etag"] == f'"{file["digest"]}"'
        assert read.headers["content-type"] == "text/plain"  # by its name, whatever was said of it
        assert read.headers["x-content-type-options"] == "nosniff"
        assert read.headers["content-disposition"] == "attachment; filename*=UTF-8''a.txt"
    for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/x-msdownload"):
        answer = await files.post("d/b.txt", content=b"x", headers={"content-type": kind})
        assert_refused(answer, 400, "FIELD_INVALID", "content-type")
    assert names(folder / "ten_1/files") == ["d/a.txt"]


async def test_names_arrive_decoded_once_and_never_lead_out(files, folder):
    for path, name in (
        ("é.txt", "é.txt"),
        ("a%20b/c+d@e", "a b/c+d@e"),
        ("a%3Acancel", "a:cancel"),
        ("x%25y%3Fz%23", "x%y?z#"),
        ("a/./b//c/../d", "a/b/d"),
        ("%2e%2e/%2e%2e/v1/files/x", "x"),
    ):
        answer = await files.post(path, content=b"1")
        assert (answer.status_code, answer.json()["file"]["path"]) == (200, name)
        assert names(folder / "ten_1/files") == [name]
        assert (await files.get(path)).content == b"1"
        assert (await files.delete(path)).json() == {}
        assert names(folder) == []


async def test_no_cross_tenant_no_path_is_another_tenants(mesh, files, folder):
    await files.post("secret", content=b"words")
    other = mesh.bearer(tenant="ten_2")
    for path in ("secret", "..%2f..%2Ften_1/files/secret", "..%5Cten_1", "%252e%252e%252fsecret", "../../../ten_1"):
        for method in ("GET", "DELETE"):
            answer = await files.request(method, path, headers=other)
            assert answer.status_code in (400, 404), (path, answer.text)
            assert b"words" not in answer.content
    for path in (
        "/v1/files?folder=../ten_1",
        "/v1/files?folder=%2F",
        "/v1/files?folder=a/../..%2f..",
        "/v1/files/?folder=..",
    ):
        assert_refused(await files.get(f"{mesh.url}{path}", headers=other), 400, "FIELD_INVALID", "folder")
    for path in ("x?path=../../ten_1/files/secret", "x?path=/etc/passwd", "%ff"):
        assert_refused(await files.post(path, content=b"x", headers=other), 400, "FIELD_INVALID")
    forged = {**other, "x-retinue-tenant": "ten_1"}
    assert_refused(await files.get("secret", headers=forged), 404, "FILE_NOT_FOUND")
    assert (await files.get(f"{mesh.url}/v1/files", headers=other)).json() == {"files": [], "next_page_token": ""}
    assert names(folder) == ["ten_1/files/secret"]


async def test_bounded_a_file_may_be_larger_than_another_body_and_not_larger_than_that(mesh, files, folder):
    async def pieces(size):
        for _ in range(size // 65536):
            yield b"x" * 65536

    assert (await files.post("a", content=pieces(SIZE_MAX_BYTES))).status_code == 200
    answer = await files.post("b", content=pieces(SIZE_MAX_BYTES + 65536))
    assert_refused(answer, 413, "BODY_TOO_LARGE")
    await files.post("b", content=b"x" * (SIZE_MAX_BYTES + 1))
    assert mesh.asgi.body_sizes[-1] == SIZE_MAX_BYTES + 1  # read to its end, by who refuses it
    assert names(folder) == ["ten_1/files/a"]
    answer = await files.post(
        f"{mesh.url}/v1/contacts/a/messages", content=b"x" * (envoy_filters.BODY_SIZE_MAX_BYTES + 1)
    )
    assert mesh.asgi.body_sizes[-1] == envoy_filters.BODY_SIZE_MAX_BYTES + 1


async def test_bounded_a_file_of_any_size_comes_back_in_parts(files, folder):
    body = os.urandom(3 * SIZE_MAX_BYTES + 1)
    await files.post("kept", content=b"x")
    (folder / "ten_1/files/large.bin").write_bytes(body)
    async with files.stream("GET", "large.bin") as read:
        digest = hashlib.sha256()
        async for piece in read.aiter_bytes():
            digest.update(piece)
    assert (read.status_code, read.headers["content-length"]) == (200, str(len(body)))
    assert digest.hexdigest() == hashlib.sha256(body).hexdigest()
    assert read.headers["etag"].startswith("W/")


async def test_a_file_that_is_written_while_it_is_read_never_ends_as_if_it_were_whole(files, folder):
    await files.post("kept", content=b"x")
    path = folder / "ten_1/files/large.bin"
    for change in (lambda: path.write_bytes(b"y" * LARGE), path.unlink):
        path.write_bytes(b"x" * LARGE)
        size = 0
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
            async with files.stream("GET", "large.bin") as read:
                async for piece in read.aiter_raw():
                    size += len(piece)
                    if size == len(piece):  # more than all buffers on the way hold is still to be read
                        change()
        assert 0 < size < LARGE
    assert_refused(await files.get("large.bin"), 404, "FILE_NOT_FOUND")


async def test_lists_go_page_by_page_and_what_is_not_there_is_said(mesh, files, folder):
    for path in ("a/b", "a/c", "d"):
        await files.post(path, content=b"x")
    found, token = [], ""
    while True:
        query = {"recursive": "true", "page_size": "2", "page_token": token}
        page = (await files.get(f"{mesh.url}/v1/files", params=query)).json()
        found += [(file["path"], file["kind"], file["size_bytes"]) for file in page["files"]]
        token = page["next_page_token"]
        if not token:
            break
    assert found == [("a", "folder", 0), ("a/b", "file", 1), ("a/c", "file", 1), ("d", "file", 1)]
    assert_refused(await files.get("none"), 404, "FILE_NOT_FOUND")
    assert_refused(await files.delete("none"), 404, "FILE_NOT_FOUND")
    assert_refused(await files.get(f"{mesh.url}/v1/files?folder=none"), 404, "FILE_NOT_FOUND")
    assert_refused(await files.get("a"), 400, "FIELD_INVALID", "path")
    assert_refused(await files.delete("a"), 400, "FIELD_INVALID")
    assert_refused(await files.put("a/b", content=b"x"), 404, "ROUTE_NOT_FOUND")
    assert_refused(await files.get("d", headers={"authorization": ""}), 401, "CREDENTIAL_MISSING")
