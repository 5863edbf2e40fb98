"""Real OpenClaw gateways behind the whole mesh: two shared ones, and a cell for whoever's plan says so."""

import asyncio
import contextlib
import json
import os
import signal
import time

import httpx
import psutil
import pytest
import pytest_asyncio
from bundling import all_words, asked_of_the_model, built_again, exported, facts_told, said_in, spoken_in, tell
from clawed_mesh import end_of, gateways, instances, runtime_of, said, serving, told
from retinue_kit.spans import read_trace
from talking import follow, shown
from whole_mesh import connect, running

FIRST_TURN_TIMEOUT_S = 300
"""First turns of agents are had one after the other, some seconds each."""

READY_TIMEOUT_S = 480
"""Two gateways, one after the other, on a busy machine."""

SPEAKS_TIMEOUT_S = 120
"""For a new tenant's first words, behind other agents' first turns."""

LETS_GO_TIMEOUT_S = 30

ORPHAN_S = 60
"""A run without a worker waits so long for the next one, which a busy machine takes its time to begin."""
BUNDLE_TOKENS = 1000
"""Of what is carried to another runtime: what fifty short turns have, and half of what fifty longer ones do."""

GATEWAYS = 2
CELL_PLAN = "team"
PARTS = {"envoy", "gateway", "router", "worker", "policy", "runtime-adapter"}


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def mesh(model_url, openclaw_dir):
    shared, orphan = f"openclaw_shared_count={GATEWAYS}", f"openclaw_orphan_s={ORPHAN_S}"
    more = ("--set", f"runtime-adapter.{shared}", "--set", f"runtime-adapter.{orphan}")
    more += ("--set", f"portability.bundle_token_budget={BUNDLE_TOKENS}")
    settings = {"RUNTIMES": "openclaw,light", "RETINUE_OPENCLAW_DIR": str(openclaw_dir)}
    with running(model_url, *more, **settings) as own:
        end = time.monotonic() + READY_TIMEOUT_S
        while serving(own) < GATEWAYS:  # tests come in any order, and none is about the start
            assert time.monotonic() < end, instances(own)
            time.sleep(0.5)
        yield own
        pids = {process.pid for process in gateways(own).values()}
        own.down()
        assert pids
        assert not [pid for pid in pids if psutil.pid_exists(pid)], "gateways outlive their mesh"
        assert not list((own.state / "openclaw-instances").glob("ins_*"))


@pytest_asyncio.fixture
async def client(mesh):
    async with connect(mesh, mesh.token()) as connected:
        connected.timeout = FIRST_TURN_TIMEOUT_S
        yield connected


@pytest.fixture
def two_ready(mesh, eventually):
    """Wait until both shared gateways take runs."""

    async def wait():
        def ready():
            return serving(mesh) == GATEWAYS

        await eventually(ready, READY_TIMEOUT_S)

    return wait


@pytest.fixture
def served_by(mesh, client, eventually):
    """Wait until the caller's tenant has a gateway that takes its runs; answers its id and process."""

    async def look():
        status = await client.get("/api/instance/status")
        mine = status.json().get("instance", {})
        process = gateways(mesh).get(mine.get("instance", ""))
        return (mine["instance"], process) if process is not None and mine.get("state") == "ready" else None

    async def wait(contact):
        # Asked for by name: where it has been killed shortly before, another would stand in.
        await told(client, contact, "warm", runtime="openclaw")
        return await eventually(look, READY_TIMEOUT_S)

    return wait


async def test_a_conversation_runs_on_openclaw_and_remembers(mesh, two_ready, contact):
    await two_ready()
    # Of a tenant of its own: for those whose gateway was killed shortly before, light stands in a while.
    async with connect(mesh, mesh.token("fresh")) as client:
        client.timeout = FIRST_TURN_TIMEOUT_S
        await _runs_and_remembers(client, contact)


async def _runs_and_remembers(client, contact):
    first = await told(client, contact, "#tokens=5")
    assert (runtime_of(first), said(first)) == ("openclaw", ["t0 t1 t2 t3 t4"])
    await told(client, contact, "I am Anna")
    assert said(await told(client, contact, "#recall")) == ["#tokens=5 | I am Anna"]


async def test_what_was_said_on_another_runtime_is_known(client, contact):
    await told(client, contact, "by light", runtime="light")
    await told(client, contact, "by openclaw", runtime="openclaw")
    await told(client, contact, "by light again", runtime="light")
    assert said(await told(client, contact, "#recall", runtime="openclaw")) == [
        "by light | by openclaw | by light again"
    ]


async def test_cards_reasoning_and_errors_are_told_as_with_any_runtime(client, contact):
    frames = await told(client, contact, "#card #tokens=2")
    assert [frame["data"]["data"]["title"] for frame in frames if frame["event"] == "card"] == ["Offline"]
    thought = await told(client, contact, "#tokens=2 #think=let me see", reasoning=True)
    assert "".join(f["data"]["data"]["text"] for f in thought if f["event"] == "reasoning.delta") == "let me see"
    assert said(thought) == ["t0 t1"]
    refused = await told(client, contact, "#status=400")
    error = refused[-1]["data"]["data"]["error"]
    assert [detail["reason"] for detail in error["details"] if "reason" in detail] == ["MODEL_REQUEST_REFUSED"]


WORK = """#tool=write {"path": "src/hello.py", "content": "print(6 * 7)"}
#then
#tool=exec {"command": "python3 src/hello.py"}
#tool=exec {"command": "pwd; ls STATE; true"}
#tool=memory_note {"title": "Seen", "text": "It says 42."}
#then
#tool=memory_search {"query": "what was seen?"}
#then
#say=it says {results}"""


async def test_tools_of_a_gateway_work_in_the_box_of_their_tenant_and_are_told(mesh, client, contact):
    frames = await told(client, contact, WORK.replace("STATE", str(mesh.state)))
    started = [frame["data"]["data"]["tool"] for frame in frames if frame["event"] == "tool.started"]
    ended = [frame["data"]["data"] for frame in frames if frame["event"] == "tool.finished"]
    assert started == ["write", "exec", "exec", "memory_note", "memory_search"]
    assert len({one["call_id"] for one in ended}) == len(ended) == len(started), ended
    [answer] = said(frames)
    assert "| 42" in answer
    assert "/workspace" in answer
    assert "| Remembered. | - Seen: It says 42. (general, note, importance 5," in answer
    # What is on this machine is not in the box; and any other runtime finds the same files.
    assert f"cannot access '{mesh.state}'" in answer
    light = await told(client, contact, '#tool=read {"path": "src/hello.py"}\n#then\n#say={results}', runtime="light")
    assert said(light) == ["print(6 * 7)"]


async def test_a_cancelled_run_stops_in_the_gateway_too(client, contact, eventually, model_url):
    posted = await client.post(
        f"/v1/contacts/{contact}/messages", json={"text": f"#tokens=2000 #delay=20 mark-{contact}"}
    )
    run = posted.json()["run"]["run_id"]
    async with httpx.AsyncClient(base_url=model_url.removesuffix("/v1"), trust_env=False) as model:
        await eventually(lambda: _is_open(model, f"mark-{contact}"), SPEAKS_TIMEOUT_S)
        await client.post(f"/v1/runs/{run}:cancel", json={})
        ended = (await client.post(f"/v1/runs/{run}:wait")).json()["run"]
        assert ended["state"] == "cancelled"
        await eventually(lambda: _is_closed(model), LETS_GO_TIMEOUT_S)


async def _asked(model, said):
    """How often the model was asked with this in the conversation: agents that are warmed up meanwhile ask it, too."""
    return sum(said in json.dumps(request["body"]) for request in (await model.get("/_requests")).json())


async def _is_open(model, said):
    return await _asked(model, said) and (await model.get("/_stats")).json()["open"]


async def _is_closed(model):
    return (await model.get("/_stats")).json()["open"] == 0


async def test_a_worker_that_dies_leaves_a_run_that_the_next_one_joins(mesh, client, contact, eventually, model_url):
    async with httpx.AsyncClient(base_url=model_url.removesuffix("/v1"), trust_env=False) as model:
        await told(client, contact, "warm")
        posted = await client.post(
            f"/v1/contacts/{contact}/messages", json={"text": f"#tokens=60 #delay=100 mark-{contact}"}
        )
        run = posted.json()["run"]["run_id"]
        await eventually(lambda: _is_open(model, f"mark-{contact}"), SPEAKS_TIMEOUT_S)
        for name in [name for name in mesh.processes() if name.startswith("worker")]:
            mesh.kill(name)
        ended = await end_of(client, run)
        assert ended["output"]["text"] == " ".join(f"t{n}" for n in range(60))
        assert ended["attempt_count"] == 2
        assert await _asked(model, f"mark-{contact}") == 1, "the model was not asked again"


async def test_a_gateway_killed_in_the_middle_ends_no_run_and_is_replaced(
    mesh, client, contact, eventually, two_ready, served_by, model_url
):
    await two_ready()
    mine, process = await served_by(contact)
    asked = {"text": f"#tokens=80 #delay=100 mark-{contact}", "runtime": "openclaw"}
    posted = await client.post(f"/v1/contacts/{contact}/messages", json=asked)
    run = posted.json()["run"]["run_id"]
    async with httpx.AsyncClient(base_url=model_url.removesuffix("/v1"), trust_env=False) as model:
        # Asked of the model: a command takes longer than the run where a machine is busy.
        await eventually(lambda: _is_open(model, f"mark-{contact}"), SPEAKS_TIMEOUT_S)
    process.send_signal(signal.SIGKILL)
    ended = await end_of(client, run)
    assert ended["output"]["text"] == " ".join(f"t{n}" for n in range(80))
    assert ended["attempt_count"] == 2
    await two_ready()
    assert instances(mesh).get(mine, {"state": "error"})["state"] == "error"


WRITES_ONCE = """#tool=exec {"command": "echo x >> once.txt"}
#then
#tokens=80 #delay=100"""


async def test_one_effect_a_gateway_killed_after_a_call_ends_the_run_and_makes_no_call_twice(
    client, contact, eventually, two_ready, served_by
):
    await two_ready()
    _, process = await served_by(contact)
    posted = await client.post(f"/v1/contacts/{contact}/messages", json={"text": WRITES_ONCE, "runtime": "openclaw"})

    async def written():
        return (await client.get("/v1/files/once.txt")).text == "x\n"

    await eventually(written, SPEAKS_TIMEOUT_S)
    process.send_signal(signal.SIGKILL)
    ended = await end_of(client, posted.json()["run"]["run_id"])
    assert (ended["state"], ended["attempt_count"]) == ("failed", 1), ended
    assert "what they did stays done" in ended["error"]["message"]
    assert (await client.get("/v1/files/once.txt")).text == "x\n"


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_tenants_who_speak_at_once_hear_only_their_own(mesh, two_ready, model_url, count):
    await two_ready()
    words = {f"team-{count}-{number}": f"secret-{os.urandom(8).hex()}" for number in range(count)}

    async def chat(tenant):
        async with connect(mesh, mesh.token(tenant)) as own:
            own.timeout = FIRST_TURN_TIMEOUT_S
            first = await told(own, "anna", f"#echo=I am {words[tenant]}")
            second = await told(own, "anna", "#recall")
            assert (runtime_of(first), first[-1]["event"]) == ("openclaw", "run.succeeded"), first[-1]["data"]
            events = (await own.get("/v1/contacts/anna/thread")).text
            return tenant, said(first), said(second), json.dumps([first, second]) + events

    heard = await asyncio.gather(*(chat(tenant) for tenant in words))
    for tenant, first, second, everything in heard:
        assert first == [f"I am {words[tenant]}"]
        assert second == [f"#echo=I am {words[tenant]}"]
        assert [name for name, word in words.items() if word in everything] == [tenant]
    served = [set(one["tenant_ids"]) for one in instances(mesh).values() if one["state"] != "error"]
    assert sum(map(len, served)) == len(set().union(*served)), "one place each"
    async with httpx.AsyncClient(base_url=model_url.removesuffix("/v1"), trust_env=False) as model:
        for request in (await model.get("/_requests")).json():
            assert sum(word in json.dumps(request["body"]) for word in words.values()) <= 1


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_tenants_cell_is_never_given_to_another(mesh, eventually):
    tokens = {}
    for name in ("cell-a", "cell-b"):
        tokens[name] = mesh.token(name)
        mesh.command("tenant", name, "--plan", CELL_PLAN)
    cells = {}
    for name in ("cell-a", "cell-b"):
        async with connect(mesh, tokens[name]) as own:
            own.timeout = FIRST_TURN_TIMEOUT_S
            assert runtime_of(await told(own, "anna", "hello", runtime="openclaw")) == "openclaw"
            status = (await own.get("/api/instance/status")).json()["instance"]
            assert (status["isolation"], status["state"]) == ("cell", "ready")
            cells[name] = status["instance"]
            assert (await own.delete("/api/instance/delete")).status_code == 200
            assert (await own.get("/api/instance/status")).status_code == 404
    assert cells["cell-a"] != cells["cell-b"]
    await eventually(lambda: not set(cells.values()) & instances(mesh).keys(), 60)
    assert not [path for path in (mesh.state / "openclaw-instances").glob("ins_*") if path.name in cells.values()]


async def test_one_trace_leads_from_the_client_through_openclaw_to_the_model(mesh, client, contact, eventually):
    response = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": "#tokens=3 secret-word"})

    def whole():
        spans = read_trace(mesh.state / "traces", response.headers["x-trace-id"])
        named, parts = {span.name for span in spans}, {span.service for span in spans}
        return {"openclaw.run", "model_call"} <= named and parts >= PARTS and spans

    spans = await eventually(whole)
    assert "secret-word" not in json.dumps([str(span) for span in spans])


async def test_a_conversation_goes_from_light_to_openclaw_and_back_byte_for_byte(
    mesh, client, contact, model_url, peer
):
    portability = peer("portability", f"unix:{mesh.socket('portability')}")
    texts = [
        "Grüße, 你好!\n\n two  lines #echo=ok",
        '#tool=write {"path": "notes.txt", "content": "x"}\n#then\n#say=kept',
    ]
    await tell(client, contact, texts, runtime="light")
    before = await exported(client, contact)
    declared = said_in(before)
    assert len(declared) == 4
    frames = await told(client, contact, "#echo=over there", runtime="openclaw")
    (switched,) = [frame["data"]["data"] for frame in frames if frame["event"] == "runtime.switched"]
    assert (switched["from"], switched["to"]) == ("light", "openclaw")
    body = await asked_of_the_model(model_url, "#echo=over there")
    assert spoken_in(body) == [*declared, ("user", "#echo=over there")]
    await told(client, contact, "#echo=back", runtime="light")
    body = await asked_of_the_model(model_url, "#echo=back")
    there = [("user", "#echo=over there"), ("assistant", "over there")]
    assert spoken_in(body) == [*declared, *there, ("user", "#echo=back")]
    assert await built_again(portability, before) == before


@pytest.mark.parametrize("more", ["", " The harbour is calm today, and so is the sea."], ids=["as said", "summed up"])
async def test_fifty_facts_told_on_light_are_known_on_openclaw(client, contact, model_url, more):
    facts = facts_told(50)
    await tell(client, contact, [f"{fact}{more}\n#echo=ok" for fact in facts], runtime="light")
    question = f"Who are my friends, {contact}?\n#echo=You know."
    await told(client, contact, question, runtime="openclaw")
    body = await asked_of_the_model(model_url, question)
    known = all_words(body)
    assert sum(fact.removesuffix(".") in known for fact in facts) >= 49
    assert (len(spoken_in(body)) < 2 * len(facts)) is bool(more)


async def test_openclaw_dies_in_mid_conversation_and_light_goes_on_with_nothing_shown_twice(
    mesh, client, contact, eventually, two_ready
):
    await two_ready()
    await told(client, contact, "#echo=hello", runtime="openclaw")
    text = " ".join(f"t{number}" for number in range(60))
    posted = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=60 #delay=50"})
    run = posted.json()["run"]["run_id"]
    killed = set()

    def heard(event):
        if event.type == "assistant.delta" and event.run_id == run and not killed:
            for instance, process in gateways(mesh).items():
                killed.add(instance)
                process.send_signal(signal.SIGKILL)

    of_run = [event for event in await follow(client, contact, 2, heard) if event.run_id == run]
    assert len(killed) == GATEWAYS
    assert of_run[-1].type == "run.succeeded"
    assert shown(of_run)[run] == text
    assert [event.data["text"] for event in of_run if event.type == "assistant.message"] == [text]
    (switched,) = [event for event in of_run if event.type == "runtime.switched"]
    assert (switched.data["from"], switched.data["to"]) == ("openclaw", "light")
    assert len(switched.data["bundle"]) == 64
    assert any(event.type == "run.resumed" and event.cursor < switched.cursor for event in of_run)

    def replaced():
        with contextlib.suppress(psutil.Error):  # one of those that are killed, as it is looked at
            return gateways(mesh).keys() - killed

    await eventually(replaced, READY_TIMEOUT_S)
