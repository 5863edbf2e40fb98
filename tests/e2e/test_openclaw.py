"""Real OpenClaw gateways behind the whole mesh: two shared ones, and a cell for whoever's plan says so."""

import asyncio
import json
import os
import signal
import time

import httpx
import psutil
import pytest
import pytest_asyncio
from retinue_kit.spans import read_trace
from whole_mesh import connect, parse_sse, running

FIRST_TURN_TIMEOUT_S = 300
"""First turns of agents are had one after the other, some seconds each."""

READY_TIMEOUT_S = 110
"""Both gateways at once on a busy machine."""

SPEAKS_TIMEOUT_S = 60
GATEWAYS = 2
CELL_PLAN = "team"
PARTS = {"envoy", "gateway", "router", "worker", "policy", "runtime-adapter"}


pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def mesh(model_url, openclaw_dir):
    more = ("--set", f"runtime-adapter.openclaw_shared_count={GATEWAYS}")
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


async def told(client, contact, text, **more):
    """Send a message; answers the frames of its whole stream."""
    response = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": text, **more})
    assert response.status_code == 200, response.text
    return parse_sse(response.text)


def said(frames):
    return [frame["data"]["data"]["text"] for frame in frames if frame["event"] == "assistant.message"]


def runtime_of(frames):
    return next(frame["data"]["data"]["runtime"] for frame in frames if frame["event"] == "run.started")


def gateways(mesh):
    """The gateways' processes, by instance."""
    adapter = psutil.Process(int(mesh.processes()["runtime-adapter"]["pid"]))
    found = {}
    for process in adapter.children(recursive=True):
        instance = process.environ().get("OPENCLAW_STATE_DIR", "").rpartition("/")[2]
        if instance:
            found.setdefault(instance, process)
    return found


def instances(mesh):
    return {one["instance_id"]: one for one in json.loads(mesh.command("instances", "--json").stdout)}


def serving(mesh):
    return sum(one["isolation"] == "shared" and one["state"] == "ready" for one in instances(mesh).values())


@pytest.fixture
def two_ready(mesh, eventually):
    """Wait until both shared gateways take runs."""

    async def wait():
        def ready():
            return serving(mesh) == GATEWAYS

        await eventually(ready, READY_TIMEOUT_S)

    return wait


async def test_a_conversation_runs_on_openclaw_and_remembers(client, contact):
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
#say=it says {results}"""


async def test_tools_of_a_gateway_work_in_the_box_of_their_tenant_and_are_told(mesh, client, contact):
    frames = await told(client, contact, WORK.replace("STATE", str(mesh.state)))
    started = [frame["data"]["data"]["tool"] for frame in frames if frame["event"] == "tool.started"]
    ended = [frame["data"]["data"] for frame in frames if frame["event"] == "tool.finished"]
    assert started == ["write", "exec", "exec", "memory_note"]
    assert len({one["call_id"] for one in ended}) == len(ended) == len(started), ended
    [answer] = said(frames)
    assert "| 42" in answer
    assert "/workspace" in answer
    assert "Noted: Seen." in answer
    # What is on this machine is not in the box; and any other runtime finds the same files.
    assert f"cannot access '{mesh.state}'" in answer
    light = await told(client, contact, '#tool=read {"path": "src/hello.py"}\n#then\n#say={results}', runtime="light")
    assert said(light) == ["print(6 * 7)"]


async def test_a_cancelled_run_stops_in_the_gateway_too(client, contact, eventually, model_url):
    posted = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=2000 #delay=20"})
    run = posted.json()["run"]["run_id"]
    async with httpx.AsyncClient(base_url=model_url.removesuffix("/v1"), trust_env=False) as model:
        await eventually(lambda: _is_open(model), SPEAKS_TIMEOUT_S)
        await client.post(f"/v1/runs/{run}:cancel", json={})
        ended = (await client.post(f"/v1/runs/{run}:wait")).json()["run"]
        assert ended["state"] == "cancelled"
        await eventually(lambda: _is_closed(model), 10)


async def _is_open(model):
    return (await model.get("/_stats")).json()["open"] == 1


async def _is_closed(model):
    return (await model.get("/_stats")).json()["open"] == 0


async def test_a_worker_that_dies_leaves_a_run_that_the_next_one_joins(mesh, client, contact, eventually, model_url):
    async with httpx.AsyncClient(base_url=model_url.removesuffix("/v1"), trust_env=False) as model:
        await told(client, contact, "warm")
        before = (await model.get("/_stats")).json()["requests"]
        posted = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=60 #delay=100"})
        run = posted.json()["run"]["run_id"]
        await eventually(lambda: _is_open(model), SPEAKS_TIMEOUT_S)
        for name in [name for name in mesh.processes() if name.startswith("worker")]:
            mesh.kill(name)
        ended = (await client.post(f"/v1/runs/{run}:wait", params={"timeout_s": 60})).json()["run"]
        assert ended["output"]["text"] == " ".join(f"t{n}" for n in range(60))
        assert ended["attempt_count"] == 2
        assert (await model.get("/_stats")).json()["requests"] == before + 1, "the model was not asked again"


async def test_a_gateway_killed_in_the_middle_ends_no_run_and_is_replaced(mesh, client, contact, eventually, two_ready):
    await two_ready()
    await told(client, contact, "warm")
    mine = next(name for name, one in instances(mesh).items() if one["tenant_ids"])
    posted = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=40 #delay=100"})
    run = posted.json()["run"]["run_id"]
    await eventually(lambda: instances(mesh)[mine]["running_count"] >= 1, SPEAKS_TIMEOUT_S)
    gateways(mesh)[mine].send_signal(signal.SIGKILL)
    ended = (await client.post(f"/v1/runs/{run}:wait", params={"timeout_s": 60})).json()["run"]
    assert ended["output"]["text"] == " ".join(f"t{n}" for n in range(40))
    assert ended["attempt_count"] == 2
    await two_ready()
    assert instances(mesh).get(mine, {"state": "error"})["state"] == "error"


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
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
@pytest.mark.timeout(300)
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
