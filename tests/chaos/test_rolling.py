"""Every process is restarted, one after another, while people talk; whoever repeats with the same key is answered."""

import asyncio
import json
import random
from collections import Counter

import httpx
import pytest
from talking import TERMINAL, TRY_AGAIN, assert_told_once, follow, shown, wait

CONTACTS = 6
TOKENS = 8
ANSWER = " ".join(f"t{n}" for n in range(TOKENS))
STORES = {"postgres", "redis"}
"""They are restarted by other tests, and by an operator only on purpose."""

WITHOUT_END = 10**9
TRIES_MAX = 200
RETRY_S = 0.05


class Client:
    """Repeats what may be repeated, with the same key, and keeps what it was told each time."""

    def __init__(self, client):
        self._client = client
        self.refusals = []

    async def post(self, path, **more):
        for _ in range(TRIES_MAX):
            try:
                answer = await self._client.post(path, **more)
            except httpx.TransportError as error:
                self.refusals.append(type(error).__name__)
            else:
                if answer.status_code not in TRY_AGAIN:
                    assert answer.status_code == 200, answer.text
                    return answer.json()
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["retry-after"]) >= 1
                self.refusals.append(answer.json()["details"][0]["reason"])
            await asyncio.sleep(RETRY_S)
        raise AssertionError(f"never answered: {self.refusals[-5:]}")


async def talk(client, contact, over):
    """Say one thing after another until it is over, and read each answer as a stream; answers the runs."""
    runs = []
    while not over.is_set() or len(runs) < 2:
        key = f"{contact}-{len(runs)}"
        body = {"text": f"#tokens={TOKENS} #delay=20"}
        path = f"/v1/contacts/{contact}/messages"
        run = (await client.post(path, json=body, headers={"idempotency-key": key}))["run"]["run_id"]
        assert run not in runs
        runs.append(run)
        state = "queued"
        while state not in ("succeeded", "failed", "cancelled"):
            state = (await client.post(f"/v1/runs/{run}:wait"))["run"]["state"]
    return runs


@pytest.mark.parametrize("seed", [1])
@pytest.mark.timeout(180)
async def test_ack_is_durable_and_no_run_costs_an_attempt_while_everything_is_restarted(
    mesh, client, contact, all_serve, eventually, seed, record_property
):
    await all_serve()
    before = mesh.processes()
    order = sorted(set(before) - STORES)
    random.Random(seed).shuffle(order)
    names = [f"{contact}-{n}" for n in range(CONTACTS)]
    over = asyncio.Event()
    talker = Client(client)
    talking = [asyncio.create_task(talk(talker, name, over)) for name in names]
    heard = {name: [] for name in names}
    watching = [asyncio.create_task(follow(client, name, WITHOUT_END, heard[name].append)) for name in names]
    restarted = await asyncio.to_thread(mesh.command, "restart", *order)
    over.set()
    said = [line.partition(":")[0] for line in restarted.stdout.splitlines() if "anew" in line]
    assert said == order
    said_in = dict(zip(names, await asyncio.gather(*talking), strict=True))
    for name, runs in said_in.items():
        await eventually(lambda of=heard[name], all_of=runs: sum(e.type in TERMINAL for e in of) == len(all_of))
        assert_told_once(heard[name], runs)
        assert shown(heard[name]) == dict.fromkeys(runs, ANSWER)
        for run in runs:
            ended = await wait(client, run)
            became = (ended["state"], ended["attempt_count"], ended["output"]["text"])
            assert became == ("succeeded", 1, ANSWER), mesh.logged(run)
    for task in watching:
        task.cancel()
    record_property("refusals", json.dumps(Counter(talker.refusals)))
    after = mesh.processes()
    assert {name for name in before if after[name]["pid"] != before[name]["pid"]} == set(order)
    assert [name for name in before if after[name]["restarts"] != before[name]["restarts"]] == []
    await all_serve()
