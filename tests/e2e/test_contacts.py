"""Contacts are made, read, listed and reset; one that is deleted is gone from every store, whatever was going on."""

import asyncio
import os
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio
import redis.asyncio
from refusals import assert_refused
from whole_mesh import parse_sse


async def read_value(server, key):
    """Read whatever a key holds, as text."""
    kind = await server.type(key)
    match kind:
        case b"stream":
            return repr(await server.xrange(key))
        case b"list":
            return repr(await server.lrange(key, 0, -1))
        case b"set":
            return repr(await server.smembers(key))
        case b"zset":
            return repr(await server.zrange(key, 0, -1, withscores=True))
        case b"hash":
            return repr(await server.hgetall(key))
        case _:
            return repr(await server.get(key))


class Stores:
    """Everything that the mesh keeps, searched without its help."""

    def __init__(self, state, database, server):
        self._state = state
        self._database = database
        self._server = server

    async def tables(self, mark):
        """Tables of ours with a row that holds a mark."""
        found = set()
        names = await self._database.fetch(
            "select table_schema || '.' || table_name from information_schema.tables"
            " where table_schema in ('router', 'directory') and table_type = 'BASE TABLE'"
        )
        assert len(names) > 10
        for (name,) in names:
            if await self._database.fetchval(f"select 1 from {name} t where t::text like $1 limit 1", f"%{mark}%"):
                found.add(name)
        return found

    async def keys(self, mark):
        """Keys of Redis that hold a mark, or bear it."""
        found = set()
        async for key in self._server.scan_iter(count=1000):
            if mark in repr(key) + await read_value(self._server, key):
                found.add(key)
        return found

    def files(self, mark):
        """Files under the state folder that hold a mark, or bear it; Postgres' own are what `tables` reads."""
        found = set()
        for folder, names, files in os.walk(self._state):
            if Path(folder) == self._state:
                names[:] = [name for name in names if name != "postgres"]
            for name in names + files:
                path = Path(folder, name)
                if mark in name or (path.is_file() and mark.encode() in path.read_bytes()):
                    found.add(path)
        return found


@pytest_asyncio.fixture
async def stores(mesh):
    database = await asyncpg.connect(mesh.dsn())
    server = redis.asyncio.Redis(unix_socket_path=mesh.socket("redis"))
    yield Stores(mesh.state, database, server)
    await server.aclose()
    await database.close()


@pytest.fixture
def mark():
    return f"mark{os.urandom(6).hex()}"


async def test_a_contact_is_written_whole_and_read_back(client, contact):
    path = f"/v1/contacts/{contact}"
    assert_refused(await client.get(path), 404, "CONTACT_NOT_FOUND")
    profile = {"city": "Zürich", "ages": [1, 2.5, None, True], "nested": {"a": {}}}
    body = {"display_name": "Zoë 你好", "channel": "web", "profile": profile}
    written = (await client.put(path, json=body)).json()
    assert written == {"contact": contact, "create_time": written["create_time"], **body}
    assert (await client.get(path)).json() == written
    rewritten = (await client.put(path, json={"display_name": "Zoë"})).json()
    expected = {"display_name": "Zoë", "channel": "", "profile": {}, "create_time": written["create_time"]}
    assert {**rewritten, "contact": contact} == {"contact": contact, **expected}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"display_name": "x" * 201}, "display_name"),
        ({"channel": "x" * 65}, "channel"),
        ({"profile": {"a": "b\0c"}}, "profile"),
        ({"profile": 5}, "profile"),
    ],
)
async def test_a_contact_out_of_its_limits_is_refused_and_not_made(client, contact, body, field):
    assert_refused(await client.put(f"/v1/contacts/{contact}", json=body), 400, "FIELD_INVALID", field)
    assert (await client.get(f"/v1/contacts/{contact}")).status_code == 404


async def test_a_first_message_makes_the_contact(client, contact, stream):
    await stream(contact, "#echo=x")
    assert (await client.get(f"/v1/contacts/{contact}")).json()["contact"] == contact


async def test_contacts_are_listed_by_name_in_pages_each_once(client_of, contact):
    async with client_of(f"lists-{contact}") as client:
        assert (await client.get("/v1/contacts")).json() == {"contacts": [], "next_page_token": ""}
        names = sorted(f"n-{number}" for number in range(7))
        for name in names:
            await client.put(f"/v1/contacts/{name}", json={"profile": {"secret": 1}})
        seen, token, pages = [], "", 0
        while True:
            params = {"page_size": 3, "page_token": token}
            page = (await client.get("/v1/contacts", params=params)).json()
            seen, token, pages = seen + page["contacts"], page["next_page_token"], pages + 1
            if not token:
                break
            await client.put("/v1/contacts/a-new-one-before", json={})
        assert [one["contact"] for one in seen] == names
        assert pages == 3
        assert all("profile" not in one for one in seen)


async def test_deletion_leaves_nothing_of_a_contact_in_any_store(mesh, client, stores, mark, eventually):
    path = f"/v1/contacts/{mark}"
    await client.put(path, json={"display_name": f"{mark} Smith", "channel": mark[:20], "profile": {mark: mark}})
    for text in (f"#echo=answer {mark}", f"plain {mark}", f"#status=400 {mark}", f"#think={mark} #echo={mark}"):
        body = {"text": text, "reasoning": True, "metadata": {"note": mark}}
        await client.post(f"{path}/messages:stream", json=body, headers={"idempotency-key": os.urandom(8).hex()})
    await client.post(f"{path}:reset")
    task = {"contact": mark, "kind": "extraction", "input": {"text": f"#echo={mark}", "more": mark}}
    run = (await client.post("/v1/tasks", json=task)).json()["run"]["run_id"]
    await client.post(f"/v1/runs/{run}:wait")

    assert {"router.contacts", "router.runs", "router.events"} <= await stores.tables(mark)
    assert await stores.keys(mark)
    await eventually(lambda: {"profile.json", "thread.jsonl"} <= {file.name for file in stores.files(mark)})

    assert (await client.delete(path)).status_code == 200
    assert await stores.tables(mark) == set()
    assert await stores.keys(mark) == set()
    assert stores.files(mark) == set()
    assert_refused(await client.get(path), 404, "CONTACT_NOT_FOUND")
    assert_refused(await client.get(f"{path}/messages"), 404, "CONTACT_NOT_FOUND")
    assert_refused(await client.get(f"/v1/runs/{run}"), 404, "RUN_NOT_FOUND")
    assert_refused(await client.delete(path), 404, "CONTACT_NOT_FOUND")
    assert (await client.get("/v1/runs", params={"contact": mark})).json()["runs"] == []


async def test_deletion_while_a_run_is_active_leaves_nothing_either(mesh, client, stores, mark, eventually):
    path = f"/v1/contacts/{mark}"
    answer = await client.post(f"{path}/messages", json={"text": f"#tokens=400 #delay=10 {mark}"})
    queued = await client.post(f"{path}/messages", json={"text": f"#echo={mark}"})

    await eventually(lambda: stores.keys(mark))
    assert (await client.delete(path)).status_code == 200
    for run in (answer, queued):
        assert_refused(await client.get(f"/v1/runs/{run.json()['run']['run_id']}"), 404, "RUN_NOT_FOUND")
    assert await stores.tables(mark) == set()

    async def forgotten():
        return not await stores.keys(mark) and not stores.files(mark)

    await eventually(forgotten)
    # The run may go on for a while in a worker that has not heard of it; nothing that it does may be kept.
    again = await client.post(f"{path}/messages:stream", json={"text": "#recall"})
    frames = parse_sse(again.text)
    assert frames[-1]["event"] == "run.succeeded"
    assert mark not in frames[-2]["data"]["data"]["text"]
    assert len((await client.get(f"{path}/messages")).json()["messages"]) == 2
    assert (await client.delete(path)).status_code == 200

    async def idle():
        async with httpx.AsyncClient(verify=False) as asker:
            return (await asker.get(f"{mesh.model.removesuffix('/v1')}/_stats")).json()["open"] == 0

    await eventually(idle)
    await eventually(forgotten)
    assert await stores.tables(mark) == set()


async def test_a_contact_made_anew_after_deletion_goes_on_counting_cursors(client, contact, stream):
    before = await stream(contact, "#echo=first")
    await client.delete(f"/v1/contacts/{contact}")
    after = await stream(contact, "#echo=second")
    last, first = (tuple(map(int, frame["id"].split("-"))) for frame in (before[-1], after[1]))
    assert first > last
    assert after[-1]["data"]["session_id"] != before[-1]["data"]["session_id"]


async def test_deletion_of_one_contact_leaves_the_others(client, contact, stream):
    names = [f"{contact}-{n}" for n in range(3)]
    await asyncio.gather(*(stream(name, f"#echo={name}") for name in names))
    assert (await client.delete(f"/v1/contacts/{names[1]}")).status_code == 200
    for name in (names[0], names[2]):
        said = (await client.get(f"/v1/contacts/{name}/messages")).json()["messages"]
        assert [m["text"] for m in said] == [f"#echo={name}", name]
