"""`make bench-openclaw`: turns through the mesh on OpenClaw against OpenClaw driven directly, in one run.

Both sides use a gateway of the same release with the same settings and the same model, and the same client speaks to
OpenClaw in both. Directly, the gateway asks the model itself; in the mesh it asks through Retinue. Rounds of both take
turns, one side and then the other first, so that what else the machine does meets both alike. Read the ratios.

A turn ends at the same event on both sides: where the adapter takes the run for settled, which is where the mesh tells
its end. A gateway goes on for about 50 ms behind that, and a conversation's next turn waits until it is done. Without
`--pause` the next turn therefore bears that wait, on both sides; with one, nobody does.

`--claims N` also has N new tenants take an agent that was warmed up for them, and have their first turn in it.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import aclosing
from pathlib import Path

from load import Sample, Target, drive, percentile
from retinue_kit.clock import SystemClock
from retinue_kit.ids import new_id
from retinue_local import openclaw
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw import keys, tool_policy
from retinue_runtime_adapter.openclaw.adapter import OUTPUT_SIZE_MAX_BYTES
from retinue_runtime_adapter.openclaw.backends.process import ProcessBackend
from retinue_runtime_adapter.openclaw.gateway import WebSocketGateway
from retinue_runtime_adapter.openclaw.gateway_config import Agent, openclaw_json
from retinue_runtime_adapter.openclaw.instance import SPARE_COUNT
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Isolation, RunCall
from retinue_runtime_adapter.openclaw.turn import RunTurn
from turns import RETINUE, row, show

HOME = Path(__file__).resolve().parents[2] / ".build" / "openclaw"
SAY = "#tokens=20"
START_TIMEOUT_S = 180.0
READY_TIMEOUT_S = 180.0
TURN_TIMEOUT_S = 120.0
CLAIM_TIMEOUT_S = 30.0
LOOK_S = 0.005
TOKEN = "bench"


class Direct:
    """A gateway of its own, and a client that holds a conversation in it."""

    def __init__(self, folder: Path, claw: Path, model: str) -> None:
        settings = Settings(address="", openclaw_dir=str(claw), openclaw_state_dir=str(folder / "instances"))
        self._backend = ProcessBackend(settings)
        self._folder = folder
        self._model = model
        self._agents = [keys.agent_id(new_id("ten")) for _ in range(16)]
        self._gateway: WebSocketGateway | None = None

    async def start(self) -> None:
        """Begin the gateway and connect."""
        await self._backend.prepare()
        policy = tool_policy.policy(str(tool_policy.PLUGIN_DIR), "", "")
        agents = [Agent(agent, self._model, "none") for agent in self._agents]

        def config(_host: str, port: int) -> bytes:
            return openclaw_json(port=port, token=TOKEN, proxy_base_url=self._model, policy=policy, agents=agents)

        settings, name = Settings(address=""), new_id("ins")
        spec = InstanceSpec(
            name, Isolation.SHARED, str(self._folder / "instances" / name), config, settings.openclaw_heap_mib,
            settings.openclaw_memory_mib,
        )  # fmt: skip
        process = await self._backend.begin(spec)
        gateway = self._gateway = WebSocketGateway(process.address, TOKEN, SystemClock())
        await gateway.start(START_TIMEOUT_S)

    async def turn(self, client: int, sample: Sample) -> None:
        """One turn of a client's conversation, read as the adapter reads it and to the same end."""
        agent = self._agents[client % len(self._agents)]
        call = RunCall(new_id("run"), agent, f"agent:{agent}:retinue:bench:direct:c{client}", SAY, "", TURN_TIMEOUT_S)
        turn = RunTurn(reasoning=False, size_max_bytes=OUTPUT_SIZE_MAX_BYTES)
        assert self._gateway is not None
        began, first = time.perf_counter(), 0.0
        async with aclosing(self._gateway.run(call)) as frames:
            while not turn.over:
                told = turn.feed(await anext(frames))
                if not first and any(event.HasField("text_delta") for event in told):
                    first = time.perf_counter()
        trouble = turn.end()[2]
        if trouble is not None or not first:
            print("turn failed:", trouble or "it said nothing")
            sample.failed += 1
            return
        sample.first_ms.append((first - began) * 1000)
        sample.whole_ms.append((time.perf_counter() - began) * 1000)

    async def drive(self, clients: int, seconds: float, pause_s: float = 0.0) -> Sample:
        """Let clients send turn after turn for so many seconds, with a pause behind each."""
        sample = Sample()

        async def go(client: int) -> None:
            while time.perf_counter() < until:
                await self.turn(client, sample)
                await asyncio.sleep(pause_s)

        began = time.perf_counter()
        until = began + seconds
        await asyncio.gather(*(go(client) for client in range(clients)))
        sample.wall_s = time.perf_counter() - began
        return sample

    async def close(self) -> None:
        """End the gateway."""
        if self._gateway is not None:
            await self._gateway.close()
        await self._backend.close()


def run(state: Path, *arguments: str, check: bool = True, **environ: str) -> str:
    """Run the `retinue` command; answers what it printed."""
    done = subprocess.run(
        [*RETINUE, *arguments, "--state-dir", str(state)],
        env={**os.environ, **environ}, check=check, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


def ready(state: Path, count: int) -> None:
    """Wait until so many shared gateways serve."""
    end = time.monotonic() + READY_TIMEOUT_S
    while True:
        found = json.loads(run(state, "instances", "--json"))
        if sum(one["state"] == "ready" for one in found) >= count:
            return
        if time.monotonic() > end:
            raise SystemExit(f"the gateways did not come up: {found}")
        time.sleep(0.5)


def target(address: str, token: str, contact: str) -> Target:
    """A turn through Envoy, streamed."""
    body = json.dumps({"text": SAY}).encode()
    url = f"{address}/v1/contacts/{contact}/messages:stream"
    headers = {"authorization": f"Bearer {token}"}
    return Target(url, headers, body, b"event: assistant.delta", b"event: run.succeeded")


def tenant(state: Path, name: str) -> str:
    """Make a tenant whose chat goes to a shared gateway; answers its token."""
    token = run(state, "token", "--tenant", name).strip()
    run(state, "tenant", name, "--plan", "free")
    return token


def asked(address: str, token: str, method: str, path: str) -> dict[str, object]:
    """Ask the public API about the tenant's instance."""
    request = urllib.request.Request(f"{address}{path}", method=method, headers={"authorization": f"Bearer {token}"})
    if method == "POST":
        request.data = b"{}"
        request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=CLAIM_TIMEOUT_S) as answer:
        return json.load(answer)["instance"]


def claim(address: str, token: str) -> float:
    """Claim an instance; answers the milliseconds until it is ready for the first message."""
    began = time.perf_counter()
    found = asked(address, token, "POST", "/api/instance/create")
    while found["state"] != "ready":
        if time.perf_counter() > began + CLAIM_TIMEOUT_S:
            raise SystemExit(f"the claim came to nothing: {found}")
        time.sleep(LOOK_S)
        found = asked(address, token, "GET", "/api/instance/status")
    return (time.perf_counter() - began) * 1000


def wait_for_spares(state: Path) -> None:
    """Wait until a gateway has as many warm agents as it keeps: a claim beyond them makes one, which takes seconds."""
    end = time.monotonic() + READY_TIMEOUT_S
    while f"{SPARE_COUNT} warm agents" not in run(state, "instances", "--json"):
        if time.monotonic() > end:
            raise SystemExit("no agents were warmed up in advance")
        time.sleep(LOOK_S)


async def claims(state: Path, address: str, count: int) -> list[dict[str, object]]:
    """New tenants, one after the other: the claim of a warm agent, and the first token of its first turn."""
    times: dict[str, list[float]] = {"claim": [], "first token of its first turn": []}
    for number in range(count):
        name = f"claim-{number}"
        token = await asyncio.to_thread(tenant, state, name)
        await asyncio.to_thread(wait_for_spares, state)
        times["claim"].append(await asyncio.to_thread(claim, address, token))
        sample = await drive([target(address, token, name)], LOOK_S, warm=0)
        times["first token of its first turn"] += sample.first_ms[:1]
    return [
        {
            "of a new tenant": what,
            "tenants": len(found),
            "p50_ms": round(percentile(found, 0.5), 1),
            "p95_ms": round(percentile(found, 0.95), 1),
        }
        for what, found in times.items()
        if found
    ]


async def rounds(
    args: argparse.Namespace, direct: Direct, targets: list[Target], clients: int
) -> list[dict[str, object]]:
    """Rounds of both sides in turn, added up by side."""
    pause_s = args.pause
    await direct.drive(clients, 0.1)  # each agent's first turn
    await drive(targets, 0.1)
    sides = {"direct": Sample(), "mesh": Sample()}
    for number in range(args.rounds):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            if side == "direct":
                sample = await direct.drive(clients, args.seconds, pause_s)
            else:
                sample = await drive(targets, args.seconds, warm=0, pause_s=pause_s)
            sides[side].first_ms += sample.first_ms
            sides[side].whole_ms += sample.whole_ms
            sides[side].failed += sample.failed
            sides[side].wall_s += sample.wall_s
    return [row(side, clients, sample) for side, sample in sides.items()]


async def measure(args: argparse.Namespace, folder: Path, model: str) -> list[list[dict[str, object]]]:
    """The table of turns, by side and number of clients, and that of claims."""
    claw = (await openclaw.get(os.environ, HOME, print)).folder
    state, address = folder / "state", f"http://127.0.0.1:{args.port}"
    settings = {
        "RUNTIMES": "openclaw,light",
        "RETINUE_OPENCLAW_DIR": str(claw),
        "RETINUE_MODEL_BASE_URL": model,
        "RETINUE_MODEL": "offline",
    }
    direct = Direct(folder, claw, model)
    try:
        up = (
            "up",
            "--detach",
            "--port",
            str(args.port),
            "--set",
            f"runtime-adapter.openclaw_shared_count={args.gateways}",
            # As the gateway beside it: what tools cost is another question.
            "--set",
            "runtime-adapter.openclaw_tools=false",
        )
        await asyncio.to_thread(run, state, *up, **settings)
        await asyncio.to_thread(ready, state, args.gateways)  # two gateways that begin at once take twice as long
        await direct.start()
        tokens = [await asyncio.to_thread(tenant, state, f"bench-{number}") for number in range(max(args.clients))]
        turns: list[dict[str, object]] = []
        for clients in args.clients:
            targets = [target(address, token, f"bench-{clients}") for token in tokens[:clients]]
            turns += await rounds(args, direct, targets, clients)
        return [turns, await claims(state, address, args.claims)]
    finally:
        await direct.close()
        await asyncio.to_thread(run, state, "down", check=False)


def main() -> None:
    """Start the model, both sides, measure, stop everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument(
        "--gateways", type=int, default=1, help="shared gateways of the mesh; directly it is always one"
    )
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a client waits behind each turn")
    parser.add_argument("--claims", type=int, default=8, help="new tenants that claim an agent each")
    parser.add_argument("--port", type=int, default=18082)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as folder:
        model = subprocess.Popen(
            [sys.executable, "-m", "retinue_local.offline_model", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert model.stdout is not None
            port = model.stdout.readline().strip()
            rows, claimed = asyncio.run(measure(args, Path(folder), f"http://127.0.0.1:{port}/v1"))
        finally:
            model.terminate()
            model.wait(10)
    show(rows)
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        added = float(str(other["first_p50_ms"])) - float(str(one["first_p50_ms"]))
        share = float(str(other["turns_per_s"])) / float(str(one["turns_per_s"]))
        print(f"{one['clients']:>3} clients: first token {added:+.1f} ms (p50), {share:.2f} x the turns of direct")
    if claimed:
        show(claimed)


if __name__ == "__main__":
    main()
