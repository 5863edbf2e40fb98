"""`make bench`: turns through the mesh against the same model asked directly, in one run; prints a table, writes JSON.

Everything runs on this machine at once: client, model, mesh. Read the ratios; single times belong to this machine.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
from load import Sample, Target, drive, percentile
from retinue.directory.v1 import directory_service_pb2 as directory_pb
from retinue.directory.v1 import directory_service_pb2_grpc as directory_grpc
from retinue.router.v1 import contact_service_pb2 as contact_pb
from retinue.router.v1 import contact_service_pb2_grpc as contact_grpc
from retinue_kit.client import Peer

SAY = "#tokens=20"
IDLE_TENANTS = 10_000
IDLE_AT_ONCE = 32
RETINUE = [sys.executable, "-m", "retinue_cli"]


def status(state: Path) -> list[dict[str, object]]:
    """What runs, as the command tells it."""
    done = subprocess.run([*RETINUE, "status", "--json", "--state-dir", str(state)], capture_output=True, text=True)
    return json.loads(done.stdout)


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, shared pages counted once (PSS where the kernel tells it)."""
    total = 0.0
    pids = [pid]
    while pids:
        one = pids.pop()
        try:
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        pids += [int(child) for child in children]
        total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024
    return total


def memory(state: Path) -> dict[str, float]:
    """Resident memory by process."""
    return {str(p["name"]): resident_mib(int(str(p["pid"]))) for p in status(state)}


def row(name: str, clients: int, sample: Sample) -> dict[str, object]:
    """A line of the table."""
    return {
        "path": name,
        "clients": clients,
        "turns": len(sample.whole_ms),
        "failed": sample.failed,
        "turns_per_s": round(sample.turns_per_s, 1),
        "first_p50_ms": round(percentile(sample.first_ms, 0.5), 2),
        "first_p95_ms": round(percentile(sample.first_ms, 0.95), 2),
        "whole_p50_ms": round(percentile(sample.whole_ms, 0.5), 2),
        "whole_p95_ms": round(percentile(sample.whole_ms, 0.95), 2),
    }


def show(rows: list[dict[str, object]]) -> None:
    """Print a table."""
    heads = list(rows[0])
    widths = [max(len(h), *(len(str(r[h])) for r in rows)) for h in heads]
    print("  ".join(h.ljust(w) for h, w in zip(heads, widths, strict=True)))
    for r in rows:
        print("  ".join(str(r[h]).ljust(w) for h, w in zip(heads, widths, strict=True)))


def direct(model: str) -> Target:
    """A turn asked of the model itself."""
    body = json.dumps({"model": "offline", "stream": True, "messages": [{"role": "user", "content": SAY}]}).encode()
    return Target(f"{model}/chat/completions", {}, body, b'"content":"t', b"[DONE]")


def mesh(address: str, token: str, contact: str) -> Target:
    """A turn through Envoy, streamed."""
    body = json.dumps({"text": SAY}).encode()
    headers = {"authorization": f"Bearer {token}"}
    url = f"{address}/v1/contacts/{contact}/messages:stream"
    return Target(url, headers, body, b"event: assistant.delta", b"event: run.succeeded")


async def idle_tenants(state: Path, count: int) -> None:
    """Make tenants with a contact each, who then do nothing."""
    sockets = {str(p["name"]): str(p["address"]) for p in status(state)}
    directory, router = Peer("directory", sockets["directory"]), Peer("router", sockets["router"])
    tenants = directory_grpc.DirectoryServiceStub(directory.channel)
    contacts = contact_grpc.ContactServiceStub(router.channel)
    gate = asyncio.Semaphore(IDLE_AT_ONCE)

    async def make(number: int) -> None:
        async with gate:
            made = await directory.call(tenants.CreateTenant, directory_pb.CreateTenantRequest(name=f"idle-{number}"))
            request = contact_pb.UpdateContactRequest(tenant_id=made.tenant.tenant_id, contact="somebody")
            await router.call(contacts.UpdateContact, request)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(make(number))
    await directory.close()
    await router.close()


async def durable_turns(state: Path) -> int:
    """Runs that Postgres holds as succeeded; it commits with fsync on."""
    address = next(str(p["address"]) for p in status(state) if p["name"] == "postgres")
    folder = address.removeprefix("unix:")
    folder = str(Path(folder).parent) if ".s.PGSQL" in folder else folder
    connection = await asyncpg.connect(f"postgresql://postgres@/retinue?host={folder}")
    try:
        assert await connection.fetchval("show fsync") == "on"
        assert await connection.fetchval("show synchronous_commit") == "on"
        return int(await connection.fetchval("select count(*) from router.runs where state = 'succeeded'"))
    finally:
        await connection.close()


async def measure(args: argparse.Namespace, state: Path, model: str) -> dict[str, object]:
    """All figures of one run."""
    env = {"RUNTIMES": "light", **os.environ, "RETINUE_MODEL_BASE_URL": model, "RETINUE_MODEL": "offline"}
    up = [*RETINUE, "up", "--detach", "--port", str(args.port), "--state-dir", str(state)]
    ready_s = []
    for _ in range(2):  # the first start makes the database; the second is a warm one
        began = time.perf_counter()
        subprocess.run(up, env=env, check=True, stdout=subprocess.DEVNULL)
        ready_s.append(time.perf_counter() - began)
        if len(ready_s) == 1:
            subprocess.run([*RETINUE, "down", "--state-dir", str(state)], check=True, stdout=subprocess.DEVNULL)
    token = subprocess.run(
        [*RETINUE, "token", "--tenant", "bench", "--state-dir", str(state)], check=True, capture_output=True, text=True
    ).stdout.strip()
    address = f"http://127.0.0.1:{args.port}"
    idle = memory(state)
    before = await durable_turns(state)
    rows, turns = [], 0
    for clients in args.clients:
        rows.append(row("direct", clients, await drive([direct(model)] * clients, args.seconds)))
        targets = [mesh(address, token, f"bench-{clients}-{n}") for n in range(clients)]
        sample = await drive(targets, args.seconds)
        rows.append(row("mesh", clients, sample))
        turns += len(sample.whole_ms) + 2 * clients
    kept = await durable_turns(state) - before
    after = memory(state)
    result: dict[str, object] = {
        "ready_s": {"cold": round(ready_s[0], 2), "warm": round(ready_s[1], 2)},
        "turns": rows,
        "turns_answered": turns,
        "turns_durable": kept,
        "memory_idle_mib": {k: round(v, 1) for k, v in idle.items()},
        "memory_after_mib": {k: round(v, 1) for k, v in after.items()},
    }
    if args.idle_tenants:
        base = memory(state)
        await idle_tenants(state, args.idle_tenants)
        full = memory(state)
        result["idle_tenants"] = {
            "count": args.idle_tenants,
            "added_mib": round(sum(full.values()) - sum(base.values()), 1),
            "added_by_process_mib": {k: round(full[k] - base.get(k, 0.0), 1) for k in full},
        }
    return result


def report(result: dict[str, object]) -> None:
    """Print what was measured."""
    rows = result["turns"]
    assert isinstance(rows, list)
    show(rows)
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        added = other["first_p50_ms"] - one["first_p50_ms"]
        share = other["turns_per_s"] / one["turns_per_s"] if one["turns_per_s"] else 0
        print(f"{one['clients']:>3} clients: first token {added:+.2f} ms (p50), {share:.3f} x the turns of direct")
    for key, value in result.items():
        if key != "turns":
            print(f"{key}: {json.dumps(value)}")
    idle = result["memory_idle_mib"]
    assert isinstance(idle, dict)
    others = ("postgres", "redis", "envoy", "model")
    print(f"Python processes, idle: {sum(v for k, v in idle.items() if k not in others):.0f} MiB")


def main() -> None:
    """Start the model and the mesh in an empty folder, measure, stop both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--idle-tenants", type=int, default=IDLE_TENANTS)
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as folder:
        state = Path(folder) / "state"
        model = subprocess.Popen(
            [sys.executable, "-m", "retinue_local.offline_model", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert model.stdout is not None
            port = model.stdout.readline().strip()
            result = asyncio.run(measure(args, state, f"http://127.0.0.1:{port}/v1"))
        finally:
            subprocess.run([*RETINUE, "down", "--state-dir", str(state)], stdout=subprocess.DEVNULL)
            model.terminate()
            model.wait(10)
    report(result)
    args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
