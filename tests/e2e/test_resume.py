"""A client whose connection keeps breaking follows a conversation by its cursors, and misses and repeats nothing."""

import asyncio
import json
import random
from collections.abc import AsyncIterator

import httpx
import httpx_sse
import pytest
from whole_mesh import parse_sse

PIECE_BYTES_MAX = 4000
"""A connection of the clients here breaks somewhere within so many bytes of its answer: a dozen events at most."""

CUTS_MAX = 2000
TERMINAL = ("run.succeeded", "run.failed", "run.cancelled")
KEEP_ALIVE_MAX_S = 15
LONG = "#tokens=150 #delay=1"
WORDS = " ".join(f"t{n}" for n in range(150))


class Torn(httpx.AsyncByteStream):
    """A body that breaks off after some bytes."""

    def __init__(self, whole, size):
        self._whole = whole
        self._left = size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._whole:
            if len(piece) >= self._left:
                yield piece[: self._left]
                raise httpx.ReadError("cut")
            self._left -= len(piece)
            yield piece

    async def aclose(self):
        await self._whole.aclose()


class Scissors(httpx.AsyncHTTPTransport):
    """Cuts each connection at a random byte of its answer; what the mesh sees is a client that is gone."""

    def __init__(self, seed):
        super().__init__()
        self._random = random.Random(seed)
        self.cuts = 0

    async def handle_async_request(self, request):
        response = await super().handle_async_request(request)
        self.cuts += 1
        response.stream = Torn(response.stream, self._random.randint(1, PIECE_BYTES_MAX))
        return response


def place(cursor):
    return tuple(map(int, cursor.split("-")))


async def follow(client, path, runs, *, after="0-0"):
    """Read events by their cursors through every cut, until so many runs are over; answers the frames."""
    frames, ended = [], 0
    for _ in range(CUTS_MAX):
        try:
            async with httpx_sse.aconnect_sse(client, "GET", path, headers={"last-event-id": after}) as source:
                assert source.response.status_code == 200
                async for event in source.aiter_sse():
                    after = event.id
                    frames.append({"id": event.id, "event": event.event, "data": json.loads(event.data)})
                    ended += event.event in TERMINAL
                    if ended == runs:
                        return frames
        except httpx.ReadError:
            continue
    raise AssertionError(f"{ended} of {runs} runs ended within {CUTS_MAX} connections")


def check_cursor_monotone(frames, run, text):
    """Each durable event of a run once and in order, and deltas that are exactly its text."""
    cursors = [place(f["id"]) for f in frames]
    assert cursors == sorted(set(cursors))
    told = [f for f in frames if f["data"]["run_id"] == run]
    durable = [f["event"] for f in told if f["event"] != "assistant.delta"]
    assert durable == ["user.message", "run.started", "assistant.message", "run.succeeded"]
    assert "".join(f["data"]["data"]["text"] for f in told if f["event"] == "assistant.delta") == text
    assert told[-2]["data"]["data"]["text"] == text


@pytest.fixture
def send(client, contact):
    """Send a message; answers the id of its run."""

    async def post(text):
        response = await client.post(f"/v1/contacts/{contact}/messages", json={"text": text})
        assert response.status_code == 200, response.text
        return response.json()["run"]["run_id"]

    return post


@pytest.fixture
def cut_client(mesh):
    """Make a client whose connections break, each at a random byte."""

    def make(seed):
        headers = {"authorization": f"Bearer {mesh.token()}"}
        return httpx.AsyncClient(base_url=mesh.url, headers=headers, transport=Scissors(seed), timeout=30)

    return make


async def replay(client, path, **params):
    """Read the events of a run that is over to their end."""
    response = await client.get(path, params=params)
    assert response.status_code == 200, response.text
    return parse_sse(response.text)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_cursor_monotone_for_a_contacts_events_through_random_cuts(client, cut_client, contact, send, seed):
    async with cut_client(seed) as cut:
        following = asyncio.create_task(follow(cut, f"/v1/contacts/{contact}/events", runs=3))
        runs = [await send(LONG) for _ in range(3)]
        frames = await following
        assert cut._transport.cuts > 10
    for run in runs:
        check_cursor_monotone(frames, run, WORDS)
    ends = [f["data"]["run_id"] for f in frames if f["event"] == "run.succeeded"]
    assert ends == runs
    assert frames == await follow(client, f"/v1/contacts/{contact}/events", runs=3)


@pytest.mark.parametrize("seed", [4, 5, 6])
async def test_cursor_monotone_for_a_runs_events_through_random_cuts(client, cut_client, send, seed):
    run = await send(LONG)
    async with cut_client(seed) as cut:
        frames = await follow(cut, f"/v1/runs/{run}/events", runs=1)
        assert cut._transport.cuts > 5
    check_cursor_monotone(frames, run, WORDS)
    assert frames == await replay(client, f"/v1/runs/{run}/events")


async def test_a_streamed_message_that_breaks_off_goes_on_at_its_runs_events(cut_client, contact):
    frames = []

    async def speak(cut):
        path = f"/v1/contacts/{contact}/messages:stream"
        async with httpx_sse.aconnect_sse(cut, "POST", path, json={"text": LONG}) as source:
            async for event in source.aiter_sse():
                frames.append({"id": event.id, "event": event.event, "data": json.loads(event.data)})

    async with cut_client(7) as cut:
        with pytest.raises(httpx.ReadError):
            await speak(cut)
        assert frames[0]["event"] == "run.queued"
        run = frames.pop(0)["data"]["run_id"]
        after = frames[-1]["id"] if frames else "0-0"
        frames += await follow(cut, f"/v1/runs/{run}/events", runs=1, after=after)
    check_cursor_monotone(frames, run, WORDS)


async def test_after_a_cursor_come_exactly_the_events_behind_it(client, send):
    path = f"/v1/runs/{await send('#tokens=10 #delay=5')}/events"
    frames = await replay(client, path)
    for index in random.Random(8).sample(range(len(frames)), 5):
        rest = frames[index + 1 :]
        assert await replay(client, path, after=frames[index]["id"]) == rest
        headers = {"last-event-id": frames[index]["id"]}
        assert parse_sse((await client.get(path, headers=headers)).text) == rest
    # What a browser sends by itself is newer than what stands in its address.
    both = await client.get(path, params={"after": "0-0"}, headers={"last-event-id": frames[-2]["id"]})
    assert parse_sse(both.text) == frames[-1:]
    assert await replay(client, path, after=frames[-1]["id"]) == []


async def test_a_run_that_is_over_is_told_again_with_each_delta(client, stream, contact):
    told = await stream(contact, "#tokens=20 #delay=2")
    again = await replay(client, f"/v1/runs/{told[0]['data']['run_id']}/events")
    assert again == told[1:]
    assert sum(f["event"] == "assistant.delta" for f in again) > 1


@pytest.mark.parametrize("cursor", ["abc", "1", "1-", "-1-0", "1-2-3", "1_0", f"{'9' * 40}-0", "1-0;", "٣-٤", "x" * 99])
async def test_a_malformed_cursor_is_refused(client, send, contact, cursor):
    run = await send("#tokens=1")
    for path in (f"/v1/contacts/{contact}/events", f"/v1/runs/{run}/events"):
        for more in ({"params": {"after": cursor}}, {"headers": {"last-event-id": cursor.encode()}}):
            response = await client.get(path, **more)
            assert response.status_code == 400, response.text
            assert response.json()["code"] == 3
            assert response.json()["details"][0]["reason"] in ("CURSOR_INVALID", "FIELD_INVALID")


async def test_a_contact_that_is_not_there_yet_can_be_watched(client, contact, send):
    assert (await client.get(f"/v1/contacts/{contact}")).status_code == 404
    async with httpx_sse.aconnect_sse(client, "GET", f"/v1/contacts/{contact}/events") as source:
        assert source.response.status_code == 200
        run = await send("#tokens=3")
        kinds = []
        async for event in source.aiter_sse():
            assert json.loads(event.data)["run_id"] == run
            kinds.append(event.event)
            if event.event in TERMINAL:
                break
    assert kinds[:2] == ["user.message", "run.started"]
    assert kinds[-2:] == ["assistant.message", "run.succeeded"]


async def test_a_watcher_without_a_cursor_hears_only_what_is_new(client, contact, send, stream):
    await stream(contact, "#echo=old")
    async with httpx_sse.aconnect_sse(client, "GET", f"/v1/contacts/{contact}/events") as source:
        run = await send("#echo=new")
        events = source.aiter_sse()
        first = await anext(events)
        assert json.loads(first.data)["run_id"] == run
        await events.aclose()


async def test_two_watchers_of_a_contact_and_one_of_its_run_see_the_same(client, contact, send):
    path = f"/v1/contacts/{contact}/events"
    watchers = [asyncio.create_task(follow(client, path, runs=1)) for _ in range(2)]
    run = await send("#tokens=40 #delay=2")
    first, second = await asyncio.gather(*watchers)
    assert first == second == await follow(client, f"/v1/runs/{run}/events", runs=1)


async def test_a_watcher_of_one_contact_hears_nothing_of_another(client, contact, send):
    async with httpx_sse.aconnect_sse(client, "GET", f"/v1/contacts/{contact}-b/events") as source:
        await send("#tokens=3")
        response = await client.post(f"/v1/contacts/{contact}-b/messages", json={"text": "#tokens=1"})
        events = source.aiter_sse()
        first = await anext(events)
        assert json.loads(first.data)["run_id"] == response.json()["run"]["run_id"]
        await events.aclose()


async def test_text_of_any_kind_stays_one_event(client, stream, contact):
    said = "a\u2028b\u0085c\r\nd\n\ndata: e\nid: 9-9\n\n\U0001f980 \x1f"
    frames = await stream(contact, f"#echo={said}")
    run = frames[0]["data"]["run_id"]
    frames = await follow(client, f"/v1/runs/{run}/events", runs=1)
    check_cursor_monotone(frames, run, said)
    assert frames[0]["data"]["data"]["text"] == f"#echo={said}"


async def test_silence_is_broken_by_comments(client, contact, send):
    run = await send("#hang")
    try:
        await asyncio.gather(
            hear_comments(client, f"/v1/contacts/{contact}/events"), hear_comments(client, f"/v1/runs/{run}/events")
        )
    finally:
        await client.post(f"/v1/runs/{run}:cancel")


async def hear_comments(client, path):
    """Read a stream until it was silent once and a comment told that it still is there."""
    loop = asyncio.get_running_loop()
    async with client.stream("GET", path) as response:
        heard = loop.time()
        async for line in response.aiter_lines():
            before, heard = heard, loop.time()
            assert heard - before < KEEP_ALIVE_MAX_S
            if line == ": keep-alive" and heard - before > 1:
                return
