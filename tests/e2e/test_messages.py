"""A client sends messages and reads answers, over HTTP and SSE."""

import asyncio
import json

import pytest
import pytest_asyncio


@pytest_asyncio.fixture
async def until_running(client, eventually):
    """Wait until a run is under way."""

    async def wait(run):
        async def running():
            return (await client.get(f"/v1/runs/{run}")).json()["run"]["state"] == "running"

        await eventually(running)

    return wait


def place(cursor):
    return tuple(map(int, cursor.split("-")))


def text_of(frames):
    return "".join(f["data"]["data"]["text"] for f in frames if f["event"] == "assistant.delta")


async def test_a_streamed_message_tells_the_whole_run(stream, contact):
    frames = await stream(contact, "#tokens=5")
    kinds = [f["event"] for f in frames]
    assert kinds[0] == "run.queued"
    assert "id" not in frames[0]
    assert kinds[1:3] == ["user.message", "run.started"]
    assert kinds[-2:] == ["assistant.message", "run.succeeded"]
    assert {"attempt": 1, "runtime": "light"}.items() <= frames[2]["data"]["data"].items()
    assert frames[2]["data"]["data"]["reason"]
    text = text_of(frames)
    assert text.split() == ["t0", "t1", "t2", "t3", "t4"]
    assert frames[-2]["data"]["data"]["text"] == text
    for frame in frames[1:]:
        assert frame["id"] == frame["data"]["cursor"]
        assert frame["event"] == frame["data"]["type"]
        assert frame["data"]["run_id"] == frames[1]["data"]["run_id"]
        assert frame["data"]["time"].endswith("Z")
    assert frames[-1]["data"]["data"]["usage"]["output_tokens"] == 5


async def test_a_card_is_an_event_of_its_own_and_no_part_of_the_text(client, stream, contact):
    card = {"kind": "weather", "title": "Rome", "body": {"degrees": 20}}
    frames = await stream(contact, f"#echo=See:\n```card\n{json.dumps(card)}\n```\nDone.")
    assert [f["data"]["data"] for f in frames if f["event"] == "card"] == [card]
    assert "weather" not in text_of(frames)
    again = await client.get(f"/v1/runs/{frames[-1]['data']['run_id']}/events")
    assert '"kind":"weather"' in again.text.replace(": ", ":")


async def test_a_message_is_accepted_at_once_and_its_run_can_be_waited_for(client, contact):
    response = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=3"})
    assert response.status_code == 200
    assert len(response.headers["x-trace-id"]) == 32
    run = response.json()["run"]
    assert run["contact"] == contact
    assert run["kind"] == "chat"
    waited = (await client.post(f"/v1/runs/{run['run_id']}:wait?timeout_s=20")).json()["run"]
    assert waited["state"] == "succeeded"
    assert waited["output"]["text"].split() == ["t0", "t1", "t2"]
    assert waited["usage"]["model"]
    assert waited["runtime"] == "light"
    assert waited["attempt_count"] == 1
    assert waited["create_time"] <= waited["start_time"] <= waited["end_time"]
    assert "error" not in waited
    listed = (await client.get("/v1/runs", params={"contact": contact, "state": "succeeded"})).json()["runs"]
    assert [r["run_id"] for r in listed] == [run["run_id"]]


async def test_same_key_same_answer(client, contact, stream):
    path = f"/v1/contacts/{contact}/messages"
    headers = {"idempotency-key": f"k-{contact}"}
    answers = await asyncio.gather(*(client.post(path, json={"text": "#tokens=2"}, headers=headers) for _ in range(8)))
    assert {a.status_code for a in answers} == {200}
    assert len({a.json()["run"]["run_id"] for a in answers}) == 1
    assert sum(a.headers.get("idempotent-replay") != "true" for a in answers) == 1
    frames = await stream(contact, "#tokens=2", key=f"k-{contact}")
    assert frames[-1]["data"]["run_id"] == answers[0].json()["run"]["run_id"]
    other = await client.post(path, json={"text": "something else"}, headers=headers)
    assert other.status_code == 409
    assert other.json()["details"][0]["reason"] == "IDEMPOTENCY_KEY_REUSED"


async def test_the_conversation_is_kept_oldest_first_and_in_pages(client, contact, stream):
    for i in range(3):
        await stream(contact, f"#echo=answer {i}")
    seen, token = [], ""
    for _ in range(10):
        page = (await client.get(f"/v1/contacts/{contact}/messages?page_size=4&page_token={token}")).json()
        seen += page["messages"]
        token = page["next_page_token"]
        if not token:
            break
    assert [m["role"] for m in seen] == ["user", "assistant"] * 3
    assert [m["text"] for m in seen[1::2]] == ["answer 0", "answer 1", "answer 2"]
    assert len({m["message_id"] for m in seen}) == 6


async def test_the_agent_remembers_until_the_contact_is_reset(client, contact, stream):
    await stream(contact, "my cat is called Tom")
    frames = await stream(contact, "#recall")
    assert "Tom" in frames[-2]["data"]["data"]["text"]
    before = frames[-1]["data"]["session_id"]
    assert (await client.post(f"/v1/contacts/{contact}:reset", json={})).status_code == 200
    frames = await stream(contact, "#recall")
    assert "Tom" not in frames[-2]["data"]["data"]["text"]
    assert frames[-1]["data"]["session_id"] != before
    texts = [m["text"] for m in (await client.get(f"/v1/contacts/{contact}/messages")).json()["messages"]]
    assert "my cat is called Tom" in texts


async def test_a_queued_run_is_cancelled_at_once_and_a_running_one_soon(client, contact, until_running):
    path = f"/v1/contacts/{contact}/messages"
    running = (await client.post(path, json={"text": "#tokens=500 #delay=50"})).json()["run"]["run_id"]
    queued = (await client.post(path, json={"text": "hello"})).json()["run"]["run_id"]
    answer = (await client.post(f"/v1/runs/{queued}:cancel")).json()["run"]
    assert answer["state"] == "cancelled"
    await until_running(running)
    assert (await client.post(f"/v1/runs/{running}:cancel", json={})).status_code == 200
    # Left alone, it would go on for longer than this waits.
    ended = (await client.post(f"/v1/runs/{running}:wait?timeout_s=20")).json()["run"]
    assert ended["state"] == "cancelled"
    assert ended["output"]["text"].startswith("t0")
    again = (await client.post(f"/v1/runs/{running}:cancel")).json()["run"]
    assert again["state"] == "cancelled"


async def test_on_busy_says_what_happens_to_the_active_run(client, contact, until_running):
    path = f"/v1/contacts/{contact}/messages"
    slow = {"text": "#tokens=400 #delay=50"}
    first = (await client.post(path, json=slow)).json()["run"]["run_id"]
    await until_running(first)
    refused = await client.post(path, json={"text": "x", "on_busy": "reject"})
    assert refused.status_code == 409
    assert refused.json()["details"][0]["reason"] == "SESSION_BUSY"
    second = (await client.post(path, json={**slow, "on_busy": "interrupt"})).json()["run"]["run_id"]
    ended = (await client.post(f"/v1/runs/{first}:wait?timeout_s=20")).json()["run"]
    assert ended["state"] == "cancelled"
    await until_running(second)
    third = (await client.post(path, json={"text": "#echo=done", "on_busy": "rollback"})).json()["run"]["run_id"]
    assert (await client.post(f"/v1/runs/{third}:wait?timeout_s=20")).json()["run"]["output"]["text"] == "done"
    events = (await client.get(f"/v1/runs/{second}/events")).text
    assert "rewind_to" in events


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#status=401", "MODEL_AUTH"),
        ("#status=400", "MODEL_REQUEST_REFUSED"),
    ],
)
async def test_a_model_in_trouble_fails_the_run_with_its_reason_and_the_next_message_is_served(
    stream, contact, text, reason
):
    frames = await stream(contact, text)
    assert frames[-1]["event"] == "run.failed"
    error = frames[-1]["data"]["data"]["error"]
    assert error["details"][0]["reason"] == reason
    assert error["message"]
    assert (await stream(contact, "#echo=fine"))[-2]["data"]["data"]["text"] == "fine"


async def test_a_cut_stream_is_tried_again_and_nothing_is_shown_twice(stream, contact):
    frames = await stream(contact, f"#tokens=10 #fail_times=1,cut=4,key={contact}")
    shown = []
    for frame in frames[1:]:
        if frame["event"] == "run.resumed":
            rewind = place(frame["data"]["data"]["rewind_to"])
            shown = [f for f in shown if place(f["id"]) <= rewind]
        shown.append(frame)
    assert text_of(shown).split() == [f"t{i}" for i in range(10)]
    assert frames[-1]["event"] == "run.succeeded"


async def test_reasoning_is_told_only_where_asked_for(stream, contact):
    frames = await stream(contact, "#think=hmm #echo=yes", reasoning=True)
    assert "".join(f["data"]["data"]["text"] for f in frames if f["event"] == "reasoning.delta") == "hmm"
    frames = await stream(contact, "#think=hmm #echo=yes")
    assert "reasoning.delta" not in [f["event"] for f in frames]


async def test_a_tasks_end_arrives_in_the_contacts_stream(client, contact, stream):
    await stream(contact, "#echo=hello")
    body = {"contact": contact, "kind": "extraction", "input": {"text": "#echo=facts"}}
    run = (await client.post("/v1/tasks", json=body)).json()["run"]
    assert run["kind"] == "extraction"
    async with client.stream("GET", f"/v1/contacts/{contact}/events", params={"after": "0-0"}) as response:
        async for line in response.aiter_lines():
            if line == "event: task.finished":
                break
    ended = (await client.post(f"/v1/runs/{run['run_id']}:wait?timeout_s=20")).json()["run"]
    assert (ended["state"], ended["output"]["text"]) == ("succeeded", "facts")
