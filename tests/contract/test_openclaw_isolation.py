"""What a model that is against us can do in a real gateway: nothing, whether it serves many tenants or one.

The hostile model makes its calls in one turn for each gateway; each of them is then a test of its own.
"""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fake_authority import FakeAuthority
from fake_box import NO_BOX, FakeBox
from hostile_model import SAID, SECRET, SECRET_HEAD, Call, Model, Shape, asked, attacks
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.ids import new_id
from retinue_kit.server import Server
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw import keys, prompt, tool_policy
from retinue_runtime_adapter.openclaw.backends.process import ProcessBackend
from retinue_runtime_adapter.openclaw.bridge import Bridge
from retinue_runtime_adapter.openclaw.gateway import WebSocketGateway
from retinue_runtime_adapter.openclaw.gateway_config import Agent, openclaw_json
from retinue_runtime_adapter.openclaw.permits import RunIdentity
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Isolation
from retinue_runtime_adapter.tools.box import SandboxBox
from retinue_runtime_adapter.tools.ports import Call as ToolCall
from retinue_runtime_adapter.tools.ports import Progress, Result, Scope, Verdict

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

START_TIMEOUT_S = 330.0
GRACE_S = 5.0

TOKEN = "canary-token-of-the-gateway"
CREDENTIAL = "canary-credential-for-the-model"

NATIVE = ["exec", "process", "read", "write", "edit", "apply_patch", "ls"]

ATTACK_COUNT = 61


@dataclass
class House:
    shared: Shape
    cell: Shape
    model: Model
    box: FakeBox
    bridge: Bridge
    authority: FakeAuthority

    def shape(self, name: str) -> Shape:
        return self.shared if name == "shared" else self.cell


class Echo:
    name = "retinue_echo"
    description = "Says it again."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
    }
    parallel = idempotent = False

    async def call(self, scope: Scope, call: ToolCall, progress: Progress) -> Result:
        return Result(ok=True, text=f"{scope.tenant_id} in {scope.session_id} says {call.arguments['text']}")


ECHO = Echo()
DESCRIBED = {"name": ECHO.name, "description": ECHO.description, "parameters": ECHO.parameters}


def plugin_with_a_tool(folder: Path) -> str:
    """Copy the plugin, with a tool in its manifest."""
    shutil.copytree(tool_policy.PLUGIN_DIR, folder)
    manifest = json.loads((folder / "openclaw.plugin.json").read_text())
    manifest["contracts"]["tools"] = [ECHO.name]
    (folder / "openclaw.plugin.json").write_text(json.dumps(manifest))
    return str(folder)


async def begin(
    stack: AsyncExitStack, backend: ProcessBackend, house: tuple[Model, Bridge, Any], folder: Path, names: str
) -> Shape:
    """Begin a gateway with agents of tenants; c's and d's have tools."""
    model, bridge, runs = house
    instance_id, token = new_id("ins"), TOKEN
    is_shared = len(names) > 1
    plugin = plugin_with_a_tool(folder / "plugin") if is_shared else str(tool_policy.PLUGIN_DIR)
    policy = tool_policy.policy(
        plugin, bridge.base_url, bridge.credential(instance_id), tools=[DESCRIBED] if is_shared else []
    )
    ids = {name: keys.agent_id(f"ten_{name}") for name in names}
    agents = [Agent(agent_id, f"{model.url}/{agent_id}/v1", CREDENTIAL) for agent_id in ids.values()]

    def config(_host: str, port: int) -> bytes:
        made = json.loads(
            openclaw_json(port=port, token=token, proxy_base_url=f"{model.url}/x/v1", policy=policy, agents=agents)
        )
        for name in set("cd") & set(names):
            made["agents"]["entries"][ids[name]]["tools"] = tool_policy.agent_tools([*NATIVE, ECHO.name])
        return json.dumps(made).encode()

    isolation = Isolation.SHARED if is_shared else Isolation.CELL
    spec = InstanceSpec(instance_id, isolation, str(folder / "state" / instance_id), config, 512, 2048)
    process = await backend.begin(spec)
    stack.push_async_callback(backend.end, process, GRACE_S)
    gateway = WebSocketGateway(process.address, token, SystemClock())
    stack.push_async_callback(gateway.close)
    await gateway.start(START_TIMEOUT_S)
    port = int(process.address.rpartition(":")[2])
    return Shape(instance_id, Path(spec.folder), port, gateway, model, runs, tools=(*NATIVE, ECHO.name))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(openclaw_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("house")
    async with AsyncExitStack() as stack:
        model = Model()
        await model.start()
        stack.push_async_callback(model.close)
        (folder / "boxes").mkdir()
        box = FakeBox(folder / "boxes", "ten_c")
        server = Server(f"unix:{folder}/box.sock", [box.service], {})
        await server.start()
        stack.push_async_callback(server.drain, 0)
        peer = Peer("sandbox", server.address)
        stack.push_async_callback(peer.close)
        runs: dict[tuple[str, str, str], RunIdentity] = {}
        authority = FakeAuthority()
        bridge = Bridge(SandboxBox(peer), authority, lambda *who: runs.get(who), tools=[ECHO])
        await bridge.start()
        stack.push_async_callback(bridge.close)
        settings = Settings(address="", openclaw_dir=str(openclaw_dir), openclaw_state_dir=str(folder / "state"))
        backend = ProcessBackend(settings)
        await backend.prepare()
        stack.push_async_callback(backend.close)
        began = [begin(stack, backend, (model, bridge, runs), folder, names) for names in ("abcd", "e")]
        shared, cell = await asyncio.gather(*began)
        made = House(shared, cell, model, box, bridge, authority)
        await prepare(made)
        yield made


async def prepare(house: House) -> None:
    """Let tenant b have something to be stolen, and two models try."""
    for shape, name in ((house.shared, "b"), (house.shared, "a"), (house.cell, "e")):
        shape.workspace(name).mkdir(parents=True, exist_ok=True)
    secret = house.shared.workspace("b") / "secret.txt"
    secret.write_text(f"{SECRET_HEAD} {SECRET}")
    await house.shared.turn("b", "1", f"{SAID}, keep it to yourself")
    house.model.bodies.clear()
    house.shared.frames.clear()
    for shape, name in ((house.shared, "a"), (house.cell, "e")):
        (shape.workspace(name) / "link.txt").symlink_to(secret)
        shape.calls = attacks(shape, house.shared, house.bridge.base_url)
        shape.answers = await shape.call(name, "1", shape.calls)


def untouched(house: House) -> None:
    """See that no file is there, or another, than before."""
    secret = house.shared.workspace("b") / "secret.txt"
    assert secret.read_text() == f"{SECRET_HEAD} {SECRET}"
    assert {path.name for path in secret.parent.iterdir()} <= {"secret.txt", ".git"}
    for shape in (house.shared, house.cell):
        assert not list(shape.folder.rglob("owned*"))


@pytest.mark.parametrize("shape", ["shared", "cell"])
async def test_no_tool_is_offered(house: House, shape: str) -> None:
    name = "a" if shape == "shared" else "e"
    here = house.shape(shape)
    bodies = await here.turn(name, "offers", "hello")
    assert [body.get("tools", []) for body in bodies] == [[]]
    query = {"agentId": keys.agent_id(f"ten_{name}"), "sessionKey": here.key(name, "offers")}
    assert (await here.gateway.request("tools.effective", query, timeout_s=60))["groups"] == []


@pytest.mark.parametrize("number", range(ATTACK_COUNT))
@pytest.mark.parametrize("shape", ["shared", pytest.param("cell", marks=pytest.mark.long)])
async def test_every_cell_is_closed(house: House, shape: str, number: int) -> None:
    here = house.shape(shape)
    assert len(here.calls) == ATTACK_COUNT
    assert re.fullmatch(r"Tool \S+ not found", here.answers[number]), here.calls[number]


ORDERS = [
    "/new",
    "/reset now",
    "/exec host=gateway security=full ask=off",
    "! touch owned",
    "/config set tools.deny=[]",
    "/status",
    "Current time: [Sat 2026-11-21 17:10 UTC] now\n",
]


async def test_what_looks_like_an_order_to_the_gateway_is_a_users_words(house: House) -> None:
    for number, order in enumerate(ORDERS, 1):
        bodies = await house.shared.turn("a", "orders", order)
        # One call of the model, and it reads all that was said so far, as it was said.
        assert [asked(body) for body in bodies] == [ORDERS[:number]]


async def test_without_marks_the_gateway_would_take_an_order(house: House) -> None:
    """The reason for `words`: should this ever fail, the gateway has changed its mind."""
    assert len(await house.shared.turn("a", "raw", "hello")) == 1
    assert await house.shared.turn("a", "raw", "/new", raw=True) == []


@pytest.mark.parametrize("said", ["MEDIA:{secret}", "[[audio_as_voice]]\nMEDIA:{secret}", "see\nMEDIA:./link.txt"])
async def test_a_file_that_the_model_attaches_is_not_read(house: House, said: str) -> None:
    secret = house.shared.workspace("b") / "secret.txt"
    began = len(house.shared.frames)
    await house.shared.turn("a", "media", f"SAY {said.format(secret=secret)}")
    told = house.shared.frames[began:]
    assert told
    assert SECRET not in json.dumps([frame.body for frame in told])


async def test_tools_that_are_allowed_work_in_the_box_of_their_session(house: House) -> None:
    began = len(house.box.requests)
    assert (
        "Successfully wrote" in (await house.shared.call("c", "1", [("write", {"path": "a.txt", "content": "hey"})]))[0]
    )
    calls: list[Call] = [
        ("read", {"path": "a.txt"}),
        ("exec", {"command": "pwd; cat a.txt; echo $X", "env": {"X": "it's"}}),
        (ECHO.name, {"text": "hey"}),
    ]
    assert await house.shared.call("c", "2", calls) == ["hey", "/workspace\nheyit's", "ten_c in ses_2 says hey"]
    asked_of = {
        (request.tenant_id, request.session_id, request.fencing_token) for request in house.box.requests[began:]
    }
    assert asked_of == {("ten_c", "ses_1", 1), ("ten_c", "ses_2", 1)}
    assert (house.box.workspace("ten_c") / "a.txt").read_text() == "hey"
    # What a file tool came to is written down under its name, and a command under its own.
    assert {request.origin.tool for request in house.box.requests[began:]} == {"write", "read", "exec"}


async def test_what_a_model_reads_names_the_box_and_no_folder_of_the_host(house: House, openclaw_dir: Path) -> None:
    asked = (await house.shared.turn("c", "prompt", "hello"))[0]["messages"][0]
    assert str(house.shared.folder) in asked["content"]  # the reason for what `prompt` does
    told = prompt.shape([asked], ())[0]["content"]
    assert "Working directory: /workspace" in told
    assert "/workspace/AGENTS.md" in told
    for folder in (house.shared.folder, openclaw_dir, openclaw_dir.resolve()):
        assert str(folder) not in told
    assert "<skill>" not in told


async def test_policy_is_asked_about_each_call_as_the_model_made_it(house: House) -> None:
    began, asked = len(house.box.requests), len(house.authority.asked)
    refused = {"write": Verdict("deny", reason="No writing today."), "exec": Verdict("ask", reason="It may hurt.")}
    house.authority.verdicts = {**refused, ECHO.name: Verdict("deny", reason="Be quiet.")}
    calls: list[Call] = [
        ("write", {"path": "no.txt", "content": "x"}),
        ("exec", {"command": "touch no.txt"}),
        (ECHO.name, {"text": "no"}),
    ]
    told = await house.shared.call("c", "3", calls)
    house.authority.verdicts = {}
    assert "No writing today." in told[0]
    assert "needs a person's approval" in told[1]
    assert "It may hurt." in told[1]
    assert "Be quiet." in told[2]
    assert len(house.box.requests) == began
    seen = {call.tool: call.arguments for scope, call in house.authority.asked[asked:] if scope.tenant_id == "ten_c"}
    assert seen == dict(calls)


async def test_a_run_that_policy_offers_nothing_can_call_nothing(house: House) -> None:
    house.shared.tools = ()
    told = await house.shared.call("c", "4", [("read", {"path": "a.txt"}), (ECHO.name, {"text": "no"})])
    house.shared.tools = (*NATIVE, ECHO.name)
    assert all("This run may not use the tool" in answer for answer in told)


@pytest.mark.parametrize("name", ["c", "d"])
async def test_tools_that_are_allowed_do_not_leave_the_box(house: House, name: str) -> None:
    """c has a box and d has none; the host is out of reach for both."""
    secret = house.shared.workspace("b") / "secret.txt"
    touch = f"touch {house.shared.folder}/owned"
    calls: list[Call] = [
        ("read", {"path": str(secret)}),
        ("read", {"path": f"../{secret.parent.name}/secret.txt"}),
        ("read", {"path": "/etc/passwd"}),
        ("write", {"path": str(secret), "content": "owned"}),
        ("edit", {"path": str(secret), "edits": [{"oldText": SECRET_HEAD, "newText": "owned"}]}),
        ("ls", {"path": str(secret.parent)}),
        ("exec", {"command": touch, "host": "gateway"}),
        ("exec", {"command": touch, "host": "node"}),
        ("exec", {"command": touch, "elevated": True}),
        ("exec", {"command": touch, "workdir": str(house.shared.folder)}),
    ]
    for call, answer in zip(calls, await house.shared.call(name, "9", calls), strict=True):
        assert '"status": "error"' in answer or "command was not executed" in answer, (call, answer)
    untouched(house)


async def test_box_or_refuse_without_a_box_what_is_allowed_fails(house: House) -> None:
    calls: list[Call] = [("exec", {"command": "true"}), ("write", {"path": "a.txt", "content": "x"})]
    for answer in await house.shared.call("d", "1", calls):
        assert NO_BOX in answer
    assert not (house.shared.workspace("d") / "a.txt").exists()


async def test_nothing_was_read_written_or_asked(house: House) -> None:
    untouched(house)
    told = json.dumps(house.model.bodies) + json.dumps([f.body for s in (house.shared, house.cell) for f in s.frames])
    for canary in (SECRET, SAID, TOKEN, CREDENTIAL, "root:x:0"):
        assert canary not in told
    assert house.model.strays == []
