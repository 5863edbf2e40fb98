"""Files of a tenant, as a client sends, lists, reads and removes them, and as an operator does."""

import asyncio
import hashlib
import json
import os

from refusals import assert_refused

SIZE_MAX_BYTES = 4 << 20


def kept(mesh):
    """Read all files of tenants from the disk, by their names."""
    found = (mesh.state / "workspaces").glob("*/files/**/*")
    return {path.name: path.read_bytes() for path in found if path.is_file()}


async def test_a_file_is_sent_listed_read_and_gone_from_the_disk(mesh, client, contact):
    data = os.urandom(SIZE_MAX_BYTES)
    path = f"/v1/files/{contact}/photos/a%20b.png"
    made = await client.post(path, content=data, headers={"content-type": "image/png"})
    assert made.status_code == 200, made.text
    file = made.json()["file"]
    digest = hashlib.sha256(data).hexdigest()
    assert (file["path"], file["size_bytes"], file["digest"]) == (f"{contact}/photos/a b.png", len(data), digest)
    assert data in kept(mesh).values()
    listed = (await client.get("/v1/files", params={"folder": contact, "recursive": "true"})).json()
    assert [(entry["path"], entry["kind"]) for entry in listed["files"]] == [
        (f"{contact}/photos", "folder"),
        (f"{contact}/photos/a b.png", "file"),
    ]
    read = await client.get(path)
    assert (read.content == data, read.headers["content-type"]) == (True, "image/png")
    assert read.headers["content-disposition"].startswith("attachment")
    assert (await client.post(path, content=b"new")).json()["file"]["size_bytes"] == 3
    assert (await client.get(path)).content == b"new"
    assert (await client.delete(path)).json() == {}
    assert_refused(await client.get(path), 404, "FILE_NOT_FOUND")
    assert not {data, b"new"} & set(kept(mesh).values())


async def test_bounded_what_is_larger_than_any_message_arrives_as_it_is_over_http_and_by_command(
    mesh, client, contact, tmp_path
):
    await client.post(f"/v1/files/{contact}/small", content=b"x")
    (folder,) = (mesh.state / "workspaces").glob(f"*/files/{contact}")
    data = os.urandom(2 * SIZE_MAX_BYTES + 1)
    (folder / "large.csv").write_bytes(data)  # as a box may, whose files are larger than what is sent here
    read = await client.get(f"/v1/files/{contact}/large.csv")
    assert (read.status_code, read.headers["content-type"]) == (200, "text/csv")
    assert read.headers["content-length"] == str(len(data))
    assert hashlib.sha256(read.content).digest() == hashlib.sha256(data).digest()
    back = tmp_path / "back.csv"
    await asyncio.to_thread(mesh.command, "files", "get", f"{contact}/large.csv", str(back), "--tenant", "e2e")
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(data).digest()
    assert [path.name for path in tmp_path.iterdir()] == ["back.csv"]


async def test_what_is_too_large_or_of_a_kind_that_is_not_let_in_is_refused_and_leaves_nothing(mesh, client, contact):
    path = f"/v1/files/{contact}.bin"
    assert_refused(await client.post(path, content=b"x" * (SIZE_MAX_BYTES + 1)), 413, "BODY_TOO_LARGE")
    form = await client.post(path, files={"file": b"x"})
    assert_refused(form, 400, "FIELD_INVALID", "content-type")
    assert f"{contact}.bin" not in kept(mesh)


async def test_no_cross_tenant_two_tenants_never_see_each_others_files(mesh, client, client_of, contact):
    await client.post(f"/v1/files/{contact}", content=b"mine alone")
    (tenant,) = {path.parts[-3] for path in (mesh.state / "workspaces").glob(f"*/files/{contact}")}
    async with client_of("files-other") as other:
        assert (await other.get("/v1/files")).json() == {"files": [], "next_page_token": ""}
        steps = (contact, f"..%2f..%2f{tenant}%2ffiles%2f{contact}", f"%2e%2e/%2e%2e/{tenant}/files/{contact}")
        for path in (*steps, f"../../{tenant}/files/{contact}", f"{contact}?path=../../{tenant}/files/{contact}"):
            for method in ("GET", "DELETE"):
                answer = await other.request(method, f"/v1/files/{path}")
                assert answer.status_code in (400, 404), (path, answer.text)
                assert b"mine alone" not in answer.content
    async with client_of("") as nobody:
        assert_refused(await nobody.get(f"/v1/files/{contact}"), 401, "CREDENTIAL_MISSING")
    assert (await client.get(f"/v1/files/{contact}")).content == b"mine alone"


def test_an_operator_puts_lists_gets_and_removes(mesh, tmp_path, contact):
    source, back = tmp_path / "report.txt", tmp_path / "back.txt"
    source.write_bytes(b"x" * (3 << 20))
    tenant = ("--tenant", "files-operator")
    mesh.token("files-operator")
    assert f"{3 << 20} bytes" in mesh.command("files", "put", str(source), f"{contact}/report.txt", *tenant).stdout
    listed = json.loads(mesh.command("files", "list", contact, "--json", *tenant).stdout)
    assert [(file["path"], file["size_bytes"]) for file in listed] == [(f"{contact}/report.txt", 3 << 20)]
    mesh.command("files", "get", f"{contact}/report.txt", str(back), *tenant)
    assert back.read_bytes() == source.read_bytes()
    again = mesh.command("files", "get", f"{contact}/report.txt", str(back), *tenant, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert mesh.command("files", "rm", contact, "--recursive", *tenant).stdout == "2 gone.\n"
    gone = mesh.command("files", "get", f"{contact}/report.txt", str(tmp_path / "no"), *tenant, check=False)
    assert (gone.returncode, gone.stderr) == (1, "error: There is no such file.\n")
    assert not (tmp_path / "no").exists()
