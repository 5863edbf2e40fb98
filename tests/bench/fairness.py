"""`make bench`, second part: a tenant alone, and beside another that floods the mesh, in one run of at most a minute.

The flood is 2,000 messages (fewer where they are not accepted within 15 s), first to many contacts, then to one. An
answer begins after one second, of the flood after five, so that what the processors do counts little and the flood
lasts. Read the ratios: `kept` is the share of its throughput alone that the tenant keeps; `wait` is the time to the
first token above one second, as a queue adds it; `waiting` is what was left of the flood when the tenant was done.
"""

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load import Sample, Target, drive, percentile
from retinue.router.v1 import load_pb2
from retinue.router.v1 import router_service_pb2 as router_pb
from retinue.router.v1 import router_service_pb2_grpc as router_grpc
from retinue_kit.client import Peer
from turns import RETINUE, show, status

SERVICE_MS = 1000
SAY = f"#tokens=2 #first={SERVICE_MS}"
FLOOD_SAY = "#tokens=2 #first=5000"
FLOOD_RUNS = 2000
FLOOD_S = 15.0
FLOOD_CONTACTS = 250
FLOOD_AT_ONCE = 16
CLIENTS = 8
"""Clients of the tenant beside the flood, each with a turn under way at all times."""


def turn(address: str, token: str, contact: str) -> Target:
    """A turn through Envoy, streamed."""
    body = json.dumps({"text": SAY}).encode()
    url = f"{address}/v1/contacts/{contact}/messages:stream"
    headers = {"authorization": f"Bearer {token}"}
    return Target(url, headers, body, b"event: assistant.delta", b"event: run.succeeded")


async def flood(router: Peer, token: str, contacts: int) -> int:
    """Have 2,000 runs accepted as fast as the router does it, for a while; answers how many were."""
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    stub = router_grpc.RouterServiceStub(router.channel)
    numbers, until = iter(range(FLOOD_RUNS)), time.perf_counter() + FLOOD_S

    async def send() -> int:
        sent = 0
        while time.perf_counter() < until and (n := next(numbers, None)) is not None:
            request = router_pb.SubmitRunRequest(
                tenant_id=claims["tenant"], contact=f"flood-{contacts}-{n % contacts}", text=FLOOD_SAY, kind="chat",
                on_busy="enqueue",
            )  # fmt: skip
            await router.call(stub.SubmitRun, request)
            sent += 1
        return sent

    return sum(await asyncio.gather(*(send() for _ in range(FLOOD_AT_ONCE))))


async def waiting(router: Peer) -> int:
    """Ask how many chats wait."""
    stub = router_grpc.RouterServiceStub(router.channel)
    load = await router.call(stub.GetLoad, load_pb2.GetLoadRequest())
    return int(next(queue.waiting_count for queue in load.queues if queue.queue_class == "chat"))


def row(name: str, sample: Sample, alone: Sample, flood_runs: int = 0, left: int = 0) -> dict[str, object]:
    """A line of the table."""
    waits = [first - SERVICE_MS for first in sample.first_ms]
    return {
        "beside": name,
        "turns": len(sample.whole_ms),
        "failed": sample.failed,
        "turns_per_s": round(sample.turns_per_s, 2),
        "kept": round(sample.turns_per_s / alone.turns_per_s, 3) if alone.turns_per_s else 0.0,
        "wait_p50_ms": round(percentile(waits, 0.5), 1),
        "wait_p95_ms": round(percentile(waits, 0.95), 1),
        "flood": flood_runs,
        "waiting": left,
    }


async def measure(address: str, tokens: dict[str, str], seconds: float, state: Path) -> list[dict[str, object]]:
    """Drive the tenant alone, beside a flood of many contacts, beside a flood of one."""
    router = Peer("router", next(str(p["address"]) for p in status(state) if p["name"] == "router"))
    targets = [turn(address, tokens["calm"], f"calm-{n}") for n in range(CLIENTS)]
    alone = await drive(targets, seconds, warm=1)
    rows = [row("nobody", alone, alone)]
    for name, contacts in (("many contacts", FLOOD_CONTACTS), ("one contact", 1)):
        accepted = await flood(router, tokens[name], contacts)
        rows.append(row(name, await drive(targets, seconds, warm=0), alone, accepted, await waiting(router)))
    await router.close()
    return rows


def main() -> None:
    """Start the model and the mesh in an empty folder, measure, stop both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--port", type=int, default=18082)
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retinue-fair-") as folder:
        path = Path(folder) / "state"
        state = ["--state-dir", str(path)]
        model = subprocess.Popen(
            [sys.executable, "-m", "retinue_local.offline_model", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert model.stdout is not None
            url = f"http://127.0.0.1:{model.stdout.readline().strip()}/v1"
            env = {"RUNTIMES": "light", **os.environ, "RETINUE_MODEL_BASE_URL": url, "RETINUE_MODEL": "offline"}
            up = [*RETINUE, "up", "--detach", "--port", str(args.port), *state]
            subprocess.run(up, env=env, check=True, stdout=subprocess.DEVNULL)
            tokens = {
                name: subprocess.run(
                    [*RETINUE, "token", "--tenant", name.replace(" ", "-"), *state],
                    check=True, capture_output=True, text=True,
                ).stdout.strip()
                for name in ("calm", "many contacts", "one contact")
            }  # fmt: skip
            rows = asyncio.run(measure(f"http://127.0.0.1:{args.port}", tokens, args.seconds, path))
        finally:
            subprocess.run([*RETINUE, "down", *state], stdout=subprocess.DEVNULL)
            model.terminate()
            model.wait(10)
    show(rows)
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    args.json.write_text(json.dumps({**results, "fairness": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
