"""Clients that ask for another runtime while a tool call is open, and the judgement whether any was given it."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
import httpx
from two_runtimes_mesh import TwoRuntimes

SEED = 6
ATTEMPTS = 1000
"""Switches that are asked for while a call is open."""

AT_ONCE = 20
"""Conversations at a time."""

MOST_OF_ONE = 60
"""Switches that are asked for in one conversation, whose call may be open for long where its worker died."""

OPEN_MS = 1000
KILLS = 4
"""Workers that are killed: each start of one costs as much as a hundred switches."""

WAIT_S = 60
AWAY_S = 1.5
RUNTIMES = ("light", "openclaw")
ENDED = ("succeeded", "failed", "cancelled")


def script(*actions: list[Any]) -> str:
    """Write what a runtime is to do, step by step (see fakes/scripted_adapter.py)."""
    return "#script " + json.dumps(actions)


class Asking:
    """Clients that ask for the other runtime while a tool call is open."""

    def __init__(self, clients: Sequence[httpx.AsyncClient], database: asyncpg.Pool) -> None:
        self._clients = clients
        self._database = database
        self._numbers = itertools.count()
        self.waited = self.refused = self.stopped = 0

    @property
    def asked(self) -> int:
        """How often another runtime was asked for."""
        return self.waited + self.refused + self.stopped

    async def go_on(self) -> None:
        """Have one conversation after the other until enough was asked."""
        while self.asked < ATTEMPTS:
            await self.converse()

    async def converse(self) -> None:
        """Open a call, ask for the other runtime for as long as it is open, and let it end."""
        number = next(self._numbers)
        chance = random.Random(f"{SEED} {number}")
        client, contact = self._clients[number % len(self._clients)], f"switching-{number}"
        action = chance.choice(
            (["open", "c1", OPEN_MS], ["calls", ["c1", "c2"], chance.random() < 0.5], ["approval", "c1"])
        )
        first = chance.choice((*RUNTIMES, "auto"))
        posted = await self._post(client, contact, script(action, ["words", "done", 0]), runtime=first)
        run = posted.json()["run"]["run_id"]
        for _ in range(MOST_OF_ONE):
            runtime = await self._open(run)
            if not runtime:
                break
            other = RUNTIMES[runtime == RUNTIMES[0]]
            if self.asked >= ATTEMPTS or not await self._ask(client, contact, other, chance):
                break
        await self._decide(client, run, chance.choice(("allow_once", "deny")))
        last = await self._post(client, contact, "#echo=over", runtime=RUNTIMES[0])
        await self._over(last.json()["run"]["run_id"])

    async def _ask(self, client: httpx.AsyncClient, contact: str, runtime: str, chance: random.Random) -> bool:
        """Ask for a runtime, one way or another; answers whether the call may be open still."""
        way = chance.choices(("reject", "enqueue", "interrupt", "rollback"), (62, 34, 2, 2))[0]
        answer = await self._post(client, contact, "#echo=switched", runtime=runtime, on_busy=way)
        if way == "reject":
            assert answer.status_code in (200, 400, 409), answer.text
            self.refused += answer.status_code != 200
            return answer.status_code != 200
        assert answer.status_code == 200, answer.text
        if way != "enqueue":
            self.stopped += 1
            return False
        self.waited += 1
        if runtime != RUNTIMES[0] or chance.random() < 0.95:
            # It waits for the call's end; most do not wait for so long.
            await client.post(f"/v1/runs/{answer.json()['run']['run_id']}:cancel", json={})
        return True

    async def _post(self, client: httpx.AsyncClient, contact: str, text: str, **more: str) -> httpx.Response:
        """Send a message through whatever happens."""
        key = {"idempotency-key": f"{contact}-{next(self._numbers)}-{time.monotonic_ns()}"}
        while True:
            answer = await client.post(f"/v1/contacts/{contact}/messages", json={"text": text, **more}, headers=key)
            if answer.status_code not in (429, 503):
                return answer

    async def _open(self, run: str) -> str:
        """Wait until a call of a run is open; answers its runtime, and nothing once the run has no open call."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            row = await self._database.fetchrow(
                "select state, runtime, exists (select from router.events e where e.run_id = r.run_id and e.type in"
                " ('tool.started', 'approval.requested')) as begun, exists (select from router.events e where"
                " e.run_id = r.run_id and e.type in ('tool.finished', 'approval.decided')) as ended"
                " from router.runs r where run_id = $1",
                run,
            )
            if row["state"] in ENDED or row["ended"]:
                return ""
            if row["begun"]:
                return row["runtime"]
            await asyncio.sleep(0.02)
        raise AssertionError(f"{run} opens no call")

    async def _decide(self, client: httpx.AsyncClient, run: str, decision: str) -> None:
        approval = await self._database.fetchval(
            "select approval_id from router.approvals where run_id = $1 and state = 'pending'", run
        )
        if approval:
            answer = await client.post(f"/v1/approvals/{approval}:decide", json={"decision": decision})
            assert answer.status_code == 200, answer.text

    async def _over(self, run: str) -> None:
        end = time.monotonic() + WAIT_S
        while await self._database.fetchval("select end_time is null from router.runs where run_id = $1", run):
            assert time.monotonic() < end, f"{run} does not end"
            await asyncio.sleep(0.05)


async def trouble(two: TwoRuntimes, chance: random.Random) -> None:
    """Kill workers, and take the second runtime away now and then, for some seconds.

    It is away for longer than policy takes to hear of it, and seldom: its breaker would have runs wait for it.
    """
    for number in range(KILLS):
        await asyncio.sleep(chance.uniform(1.5, 2.5))
        workers = sorted(name for name, one in two.mesh.processes().items() if "worker" in name and one["pid"])
        with contextlib.suppress(ProcessLookupError):
            two.mesh.kill(chance.choice(workers))
        if number % 2 == 1:
            two.leave()
            await asyncio.sleep(AWAY_S)
            two.come_back()


class Call(NamedTuple):
    """A call from its start, or the question whether it may run, to its end; tokens are those of the log."""

    run: str
    start: int
    end: int
    own: bool
    """Whether the attempt whose token the end bears had begun before it: else it was recorded as that one was taken."""

    def is_open(self, run: str, token: int) -> bool:
        """Whether it was open when an attempt began."""
        return self.start < token and (token < self.end or (token == self.end and self.own and run == self.run))


def calls_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Call]]:
    """Read the calls from the events of the log, by session. What has no end of its own ends with its run."""
    calls: dict[str, list[Call]] = {}
    begun: dict[tuple[str, str], tuple[str, int]] = {}

    def close(key: tuple[str, str], token: int, *, own: bool) -> None:
        session, start = begun.pop(key)
        calls.setdefault(session, []).append(Call(key[0], start, token, own))

    for row in rows:
        data, run, token = json.loads(row["data"]), row["run_id"], row["token"]
        key = run, data.get("approval_id") or data.get("call_id")
        if row["type"] in ("tool.started", "approval.requested"):
            begun.setdefault(key, (row["session_id"], token))
        elif row["type"] == "tool.finished":
            close(key, token, own=True)
        elif row["type"] == "approval.decided":
            if data["decision"] == "deny":  # else the call is still to be made
                close(key, token, own=False)
        else:
            for key in [key for key in begun if key[0] == run]:
                close(key, token, own=True)
    assert not begun
    return calls


async def admitted(database: asyncpg.Pool, two: TwoRuntimes) -> tuple[list[tuple[str, int, str, Call]], int]:
    """Judge by the log: attempts that began on another runtime than that of a call which was open. Answers them, and
    how many attempts began while a call was open."""
    rows = await database.fetch(
        "select session_id, run_id, token, n, type, data from router.events where type in ('tool.started',"
        " 'tool.finished', 'approval.requested', 'approval.decided', 'run.succeeded', 'run.failed', 'run.cancelled')"
        " and log_id in (select log_id from router.logs where contact like 'switching-%') order by token, n"
    )
    sessions = {row["run_id"]: row["session_id"] for row in rows}
    runtimes = {(run, token): runtime for run, runtime, token in two.attempts()}
    calls, found, within = calls_of(rows), [], 0
    for (run, token), runtime in runtimes.items():
        for call in calls.get(sessions.get(run), ()):
            if call.is_open(run, token):
                within += 1
                if runtimes[call.run, call.start] != runtime:
                    found.append((run, token, runtime, call))
    return found, within
