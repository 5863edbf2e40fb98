"""The model of the lease core and the router's own stores on a real database, step by step: every answer and every row.

`HYPOTHESIS_PROFILE=long` tries ten thousand interleavings instead of some hundred. A failure prints the steps.
"""

import asyncio
import itertools
import json
import os

import asyncpg
import hypothesis
import lease_core as core
import pytest
from hypothesis import Phase
from hypothesis.stateful import invariant, run_state_machine_as_test
from lease_core import Event, Held
from lease_machine import Leases, walk_all
from retinue_kit import postgres
from retinue_router.domain.submission import Submission
from retinue_router.ring import Ticket
from retinue_router.store.approvals import ApprovalStore
from retinue_router.store.runs import NewIds, RunStore
from retinue_router.worker.leases import Asked, Ending, LeaseStore

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
WALKS = 10_000 if LONG else 100
TIMEOUT_S = 7200 if LONG else 300
EXAMPLES = 10_000 if LONG else 10
STEPS_MAX = 20

TENANT = "ten_a"
LEASE_S = 3600.0
"""Longer than a test: time passes only where a step says so."""

AN_HOUR_AGO = "clock_timestamp() - interval '1 hour'"
ROWS = """
select jsonb_build_object(
  'log', (
    select jsonb_build_array(l.token, l.holder, case when l.due_time is null then 'never'
      when l.due_time <= clock_timestamp() then 'past' else 'future' end, l.last_token, l.last_n, l.next_position - 1)
    from router.logs l where l.log_id = $1),
  'runs', (
    select jsonb_agg(jsonb_build_array(r.position, r.state, r.attempt, r.token, r.cancel, r.dropped, r.said_token,
      r.said_n, convert_from(r.checkpoint, 'utf8'), coalesce(r.dead, '') = 'open',
      coalesce(r.rest_until > clock_timestamp(), false)) order by r.position)
    from router.runs r where r.log_id = $1),
  'mail', (
    select coalesce(jsonb_agg(jsonb_build_array(m.type, m.run_id) order by m.mail_id), '[]')
    from router.mail m where m.log_id = $1),
  'events', (
    select coalesce(jsonb_agg(jsonb_build_array(e.token, e.n, e.prev_token, e.prev_n, e.type, e.run_id)
      order by e.token, e.n), '[]')
    from router.events e where e.log_id = $1),
  'approvals', (
    select coalesce(jsonb_object_agg(a.approval_id, case when a.state = 'pending'
      and a.expire_time <= clock_timestamp() then 'late' else a.state end), '{}')
    from router.approvals a where a.log_id = $1))
"""


class Real:
    """Calls the stores as the service and its workers do; answers in the model's words."""

    def __init__(self, pool, admin, log_id):
        self.runs, self.approvals = RunStore(pool), ApprovalStore(pool)
        self.leases = LeaseStore(pool, LEASE_S)
        self.admin = admin
        self.ticket = Ticket(TENANT, log_id)
        self.names = {}
        self.asked = {}

    def position(self, run_id):
        return next((position for position, name in self.names.items() if name == run_id), 0)

    def events(self, entries):
        found = []
        for entry in entries:
            cursor, prev = ((c.token, c.n) for c in (entry.cursor, entry.prev))
            found.append(Event(cursor, prev, entry.type, self.position(entry.run_id)))
        return tuple(found)

    def held(self, held):
        if held is None:
            return None
        state = held.checkpoint.decode() or None
        return Held(held.token, self.position(held.run_id), held.attempt, state, self.events(held.events), held.ring)

    def recorded(self, told):
        rows = [
            {"n": n, "type": t, "run_id": self.names[of], "session_id": "ses_a", "data": {"text": "yes"}}
            for n, t, of in told
        ]
        return json.dumps(rows).encode()

    async def submit(self, busy, key):
        name = f"run_{self.ticket.log_id}_{len(self.names) + 1}"
        asked = Submission(
            tenant_id=TENANT, contact=self.ticket.log_id, principal="usr_1", text="hello", on_busy=busy, metadata={},
            input={}, parameters={}, idempotency_key=key and f"{self.ticket.log_id}-{key}",
        )  # fmt: skip
        row = await self.runs.submit(asked, NewIds(self.ticket.log_id, "ses_a", name, None), b'{"text": "hello"}', "")
        if row["outcome"] == "accepted":
            self.names[len(self.names) + 1] = name
        position = self.position(row["run_id"]) or None
        return (row["outcome"], position, row["ring"], row["poke"])

    async def cancel(self, position):
        row = await self.runs.cancel(TENANT, self.names[position], "usr_1")
        return (row["state"], row["ring"], row["poke"])

    async def decide(self, position, decision):
        row = await self.approvals.decide(TENANT, self.asked[position], decision, "usr_1")
        return (row["outcome"], row["ring"])

    async def claim(self, holder):
        return self.held(await self.leases.claim(self.ticket, holder))

    async def renew(self, token):
        found = await self.leases.renew([(self.ticket, token)])
        return (True, found[0].wish) if found else core.REFUSED

    async def checkpoint(self, token, position, told, state):
        entries = await self.leases.checkpoint(
            self.ticket, token, self.names[position], self.recorded(told), state.encode(), b"{}"
        )
        return core.REFUSED if entries is None else (True, self.events(entries))

    async def park(self, token, position, n, state):
        name = f"apr_{self.ticket.log_id}_{position}_{token}"
        asked = Asked(name, n, "call_1", "shell", "ls", int(LEASE_S))
        answer = await self.leases.park(self.ticket, token, self.names[position], b"[]", state.encode(), b"{}", asked)
        if answer is None:
            return core.REFUSED
        self.asked[position] = name
        return (True, self.events(answer[0]), answer[1])

    async def finish(self, token, position, state, told, terminal_n, holder, **options):
        ending = Ending(
            state=state, output="", usage=b"{}", error=b"{}" if state == "failed" else None, decision=None,
            agent_id="agt_1", events=self.recorded(told), terminal_n=terminal_n,
            delay_s=LEASE_S if options.get("rest") else 0.0, refund=options.get("refund", False),
            dead=options.get("dead", False),
        )  # fmt: skip
        ended = await self.leases.finish(
            self.ticket, token, self.names[position], ending, holder, take_next=options.get("take_next", False)
        )
        if ended is None:
            return core.REFUSED
        return (True, ended.state, self.events(ended.events), ended.ring, self.held(ended.next))

    async def passed(self, what, position):
        if what == "due":
            for row, until in (("logs", "due_time"), ("runs", "rest_until")):
                sql = f"update router.{row} set {until} = {AN_HOUR_AGO} where log_id = $1 and {until} is not null"
                await self.admin.execute(sql, self.ticket.log_id)
        else:
            sql = f"update router.approvals set expire_time = {AN_HOUR_AGO} where approval_id = $1"
            await self.admin.execute(sql, self.asked[position])

    async def rows(self):
        found = json.loads(await self.admin.fetchval(ROWS, self.ticket.log_id))
        found["mail"] = [[type_, self.position(run)] for type_, run in found["mail"]]
        found["events"] = [[*rest, self.position(run)] for *rest, run in found["events"]]
        found["approvals"] = {p: found["approvals"][name] for p, name in self.asked.items()}
        return found


def rows_of(log):
    """The rows that a log of the model stands for."""
    if not log.runs:
        return None
    return {
        "log": [log.token, log.holder, log.due, *log.last, len(log.runs)],
        "runs": [
            [
                r.position,
                r.state,
                r.attempt,
                r.token,
                r.cancel,
                r.dropped,
                *(r.said or (None, None)),
                r.checkpoint,
                r.dead,
                r.resting,
            ]
            for r in log.runs
        ],
        "mail": [list(one) for one in log.mail],
        "events": [[*e.cursor, *e.prev, e.type, e.run] for e in log.events],
        "approvals": {r.position: r.approval for r in log.runs if r.approval},
    }


class Lockstep(Leases):
    """Each call is made of both; `run` waits for what the real one answers."""

    run = None
    pool = None
    admin = None
    numbered = itertools.count(1)

    def __init__(self):
        super().__init__()
        self.real = Real(self.pool, self.admin, f"log_{next(self.numbered)}")

    def made(self, name, *arguments, **options):
        answer = super().made(name, *arguments, **options)
        found = self.run(getattr(self.real, name)(*arguments, **options))
        assert found == answer, f"{name}: the database answers {found}, the model {answer}"
        return answer

    def passed(self, what, position=0):
        self.run(self.real.passed(what, position))

    @invariant()
    def invariants_hold(self):
        super().invariants_hold()
        expected = rows_of(self.log)
        if expected is not None:
            found = self.run(self.real.rows())
            assert found == expected, f"rows: the database has {found}, the model {expected}"


@pytest.fixture
def machine(database):
    """Answer the machine on a fresh database."""
    with asyncio.Runner() as runner:

        async def connect():
            return await postgres.connect(database.dsn("retinue_router"), max_size=1), await asyncpg.connect(
                database.admin_dsn
            )

        pool, admin = runner.run(connect())
        yield type("OnReal", (Lockstep,), {"run": staticmethod(runner.run), "pool": pool, "admin": admin})
        runner.run(admin.close())
        runner.run(pool.close())


@pytest.mark.timeout(TIMEOUT_S)
def test_database_and_model_agree_on_every_answer_and_row(machine):
    walk_all(machine, WALKS, STEPS_MAX)


@pytest.mark.timeout(TIMEOUT_S)
def test_hypothesis_finds_no_interleaving_in_which_they_differ(machine):
    # What it finds is made smaller in the long run only: each try is some hundred calls.
    phases = (Phase.generate, Phase.shrink) if LONG else (Phase.generate,)
    settings = hypothesis.settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS_MAX, derandomize=True, phases=phases
    )
    run_state_machine_as_test(machine, settings=settings)


@pytest.mark.parametrize(
    ("function", "rule", "without"),
    [
        ("finish_2", "x.token = p_token and x.holder is not null for no key", "x.holder is not null for no key"),
        ("checkpoint_1", "x.token = p_token and x.holder", "x.holder"),
        ("claim_1", "x.due_time <= clock_timestamp()", "x.due_time is not null"),
        ("renew_1", "u.token and x.holder is not null\n      returning", "u.token returning"),
        ("cancel_run_1", "if l.holder is null then update", "if false then update"),
        ("take_1", "r.cancel is not null or r.attempt", "r.attempt"),
        ("take_1", "if r.rest_until > clock_timestamp() then", "if false then"),
    ],
)  # fmt: skip
def test_a_function_with_a_rule_less_is_caught(machine, function, rule, without):
    source = machine.run(
        machine.admin.fetchval("select pg_get_functiondef(oid) from pg_proc where proname = $1", function)
    )
    assert rule in source
    machine.run(machine.admin.execute("set search_path = router"))
    machine.run(machine.admin.execute(source.replace(rule, without)))
    with pytest.raises(AssertionError, match="the database"):
        walk_all(machine, WALKS, STEPS_MAX)
