"""The lease core as a pure model: what accepting, claiming, renewing, parking and finishing do to one log.

It is the specification of the functions in the router's migrations, in their words. Instants are classes of instants:
`due` is NEVER (nothing to do), PAST (someone must look) or FUTURE (leased, parked or resting until then). Every
function answers what the SQL function of its name answers, as a tuple. `check` states the invariants.
"""

from dataclasses import dataclass, field

NEVER, PAST, FUTURE = "never", "past", "future"
ATTEMPTS_MAX = 3
TERMINAL = ("succeeded", "failed", "cancelled")
REFUSED = (False,)
NOTHING = None

Cursor = tuple[int, int]


@dataclass
class Run:
    """A run of the log; its name is its position."""

    position: int
    key: str = ""
    state: str = "queued"
    attempt: int = 0
    token: int | None = None
    cancel: str | None = None
    dropped: bool = False
    said: Cursor | None = None
    checkpoint: str | None = None
    dead: bool = False
    resting: bool = False
    """Whether its next attempt may not begin yet."""
    approval: str | None = None
    """Of the approval that was asked for last: pending, late (its time is over), or how it was answered."""


@dataclass(frozen=True)
class Event:
    """A durable event; `prev` is the cursor of the one before it."""

    cursor: Cursor
    prev: Cursor
    type: str
    run: int


@dataclass(frozen=True)
class Held:
    """What a claim or finish gave: a lease on a run, or (run 0) only what became a fact."""

    token: int
    run: int
    attempt: int
    checkpoint: str | None
    events: tuple[Event, ...]
    ring: bool = False


@dataclass
class Log:
    """The log with its runs, in order of position, its mail and its events."""

    token: int = 0
    holder: str | None = None
    due: str = NEVER
    last: Cursor = (0, 0)
    runs: list[Run] = field(default_factory=list)
    mail: list[tuple[str, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def run(self, position: int) -> Run:
        """Find a run."""
        return self.runs[position - 1]

    def active(self) -> Run | None:
        """The run that is executed, or waits for an answer."""
        return next((r for r in self.runs if r.state in ("running", "waiting")), None)

    def queued(self) -> Run | None:
        """The first that waits."""
        return next((r for r in self.runs if r.state == "queued"), None)

    def holds(self, token: int) -> bool:
        """The fence: who may write under a token. The end of the lease is not asked for, only who came later."""
        return self.token == token and self.holder is not None

    def write(self, token: int, told: list[tuple[int, str, int]]) -> tuple[Event, ...]:
        """Write events of a token, each (n, type, run); what is there under its cursor stays and is answered too."""
        if told and self.last[0] == token and told[0][0] <= self.last[1]:
            before = [e for e in self.events if e.cursor[0] == token and e.cursor[1] >= told[0][0]]
            told = [one for one in told if one[0] > self.last[1]]
        else:
            before = []
        fresh = []
        for n, type_, run in told:
            fresh.append(Event((token, n), self.last, type_, run))
            self.last = (token, n)
        self.events += fresh
        return (*before, *fresh)


def submit(log: Log, busy: str, key: str) -> tuple[object, ...]:
    """Answers (outcome, position, ring, poke)."""
    known = next((r for r in log.runs if key and r.key == key), None)
    if known is not None:
        return ("replay", known.position, False, None)
    active = log.active()
    if active is None and busy != "enqueue":
        first = log.queued()
        # One that rests before its next attempt has begun, and nobody executes it.
        active = first if first is not None and (busy == "reject" or first.token is not None) else None
    if busy == "reject" and active is not None:
        return ("busy", None, False, None)
    run = Run(len(log.runs) + 1, key)
    log.runs.append(run)
    poke = None
    if busy in ("interrupt", "rollback") and active is not None:
        if active.state == "running":
            active.cancel = "rollback" if active.cancel == "rollback" else busy
            poke = log.holder
        else:
            _cancel_idle(log, active, busy)
            log.due = NEVER
    if log.due == NEVER:
        log.due = PAST
    return ("accepted", run.position, log.due == PAST, poke)


def _cancel_idle(log: Log, run: Run, wish: str) -> None:
    """End a run that nobody executes: the row at once, its event as mail."""
    run.state, run.cancel, run.dropped = "cancelled", wish, wish == "rollback"
    _close_approval(run)
    log.mail.append(("run.cancelled", run.position))


def _close_approval(run: Run) -> None:
    if run.approval in ("pending", "late"):
        run.approval = "expired"


def cancel(log: Log, position: int) -> tuple[object, ...]:
    """Answers (state, ring, poke)."""
    run = log.run(position)
    if run.state in ("queued", "waiting"):
        _cancel_idle(log, run, "cancel")
        if log.holder is None:
            log.due = PAST
        return ("cancelled", log.holder is None, None)
    if run.state == "running":
        run.cancel = run.cancel or "cancel"  # a wish to roll back outlives a plain one
        return ("running", log.due == PAST, log.holder)
    return (run.state, False, None)


def decide(log: Log, position: int, decision: str) -> tuple[object, ...]:
    """Answer a run's approval; answers (outcome, ring)."""
    run = log.run(position)
    if run.approval != "pending":
        return ("closed", False)
    run.approval = decision
    log.mail.append(("approval.decided", position))
    if log.holder is None:
        log.due = PAST
    return ("decided", log.holder is None)


def claim(log: Log, holder: str) -> Held | None:
    """Take the lease; to the holder who has it already, answer what it got."""
    if log.due != PAST:
        return _held_by(log, holder)
    return _take(log, holder)


def _held_by(log: Log, holder: str) -> Held | None:
    run = log.active()
    if log.holder != holder or run is None or run.state != "running" or run.token != log.token:
        return NOTHING
    return Held(log.token, run.position, run.attempt, run.checkpoint, _events_of(log, log.token))


def _events_of(log: Log, token: int, first: int = 0) -> tuple[Event, ...]:
    return tuple(e for e in log.events if e.cursor[0] == token and e.cursor[1] >= first)


def _take(log: Log, holder: str) -> Held | None:
    """Take the run that is due: the one whose holder is gone, the decided one, or the oldest queued; and the mail."""
    run = log.active() or log.queued()
    parked = run is not None and (run.resting or (run.state == "waiting" and run.approval == "pending"))
    if parked:
        run = None  # undecided, or it rests: only mail may be taken
    if run is None and not log.mail:
        log.holder, log.due = None, FUTURE if parked else NEVER
        return NOTHING
    token = log.token + 1
    told: list[tuple[int, str, int]] = []

    def tell(type_: str, of: int) -> None:
        told.append((len(told) + 1, type_, of))

    # A dead holder's run with a wish to stop is ended, not run again; so is one out of attempts.
    ended = run is not None and run.state == "running" and (run.cancel is not None or run.attempt >= ATTEMPTS_MAX)
    if run is not None and run.token is not None and run.state != "waiting" and not ended:
        tell("run.resumed", run.position)
    for type_, of in log.mail:
        tell(type_, of)
    log.mail = []
    if run is not None and ended:
        run.token = token  # whoever lost this run must not take the end for his own
        state = "cancelled" if run.cancel is not None else "failed"
        _end(run, state)
        run.dead = state == "failed"
        tell(f"run.{state}", run.position)
    elif run is not None:
        _begin(run, token, told)
    log.token = token
    events = log.write(token, told)
    if run is not None and not ended:
        log.holder, log.due = holder, FUTURE
        return Held(token, run.position, run.attempt, run.checkpoint, events)
    more = log.queued() is not None and not parked
    log.holder, log.due = None, PAST if more else FUTURE if parked else NEVER
    return Held(token, 0, 0, None, events, more)


def _begin(run: Run, token: int, told: list[tuple[int, str, int]]) -> None:
    """Begin an attempt, or go on with one that was parked."""
    if run.state == "waiting":
        if run.approval == "late":
            run.approval = "expired"
            told.append((len(told) + 1, "approval.decided", run.position))
    else:
        run.attempt += 1
        if run.token is None:
            told.append((len(told) + 1, "user.message", run.position))
            run.said = (token, len(told))
    run.state, run.token = "running", token


def _end(run: Run, state: str) -> None:
    run.state, run.checkpoint, run.dropped = state, None, run.cancel == "rollback"
    _close_approval(run)


def renew(log: Log, token: int) -> tuple[object, ...]:
    """Answers (True, wish) while the lease holds."""
    if not log.holds(token):
        return REFUSED
    log.due = FUTURE
    active = log.active()
    return (True, active.cancel if active is not None and active.state == "running" else None)


def checkpoint(log: Log, token: int, position: int, told: list[tuple[int, str, int]], state: str) -> tuple[object, ...]:
    """Record a step; answers (True, events)."""
    if not log.holds(token):
        return REFUSED
    log.due = FUTURE
    log.run(position).checkpoint = state
    return (True, log.write(token, told))


def park(log: Log, token: int, position: int, n: int, state: str) -> tuple[object, ...]:
    """Leave a run to its approval; answers (True, events, ring)."""
    if not log.holds(token):
        return REFUSED
    run = log.run(position)
    run.state, run.checkpoint, run.approval = "waiting", state, "pending"
    if run.cancel is not None:
        _cancel_idle(log, run, run.cancel)  # nobody would look at the wish for as long as the approval waits
    mailed = bool(log.mail)
    log.holder, log.due = None, PAST if mailed else FUTURE
    return (True, log.write(token, [(n, "approval.requested", position)]), mailed)


def finish(
    log: Log, token: int, position: int, state: str, told: list[tuple[int, str, int]], terminal_n: int, holder: str,
    *, rest: bool = False, refund: bool = False, dead: bool = False, take_next: bool = False,
) -> tuple[object, ...]:  # fmt: skip
    """End an attempt; answers (True, state, events, ring, next). `queued`: again, at once or after a rest."""
    run = log.run(position)
    if not log.holds(token):
        # Asked again after a lost answer? Then the run has ended, or waits, under this very token.
        if run.token != token or run.state not in (*TERMINAL, "queued"):
            return REFUSED
        written = _events_of(log, token, told[0][0] if told else terminal_n)
        return (True, run.state, written, log.queued() is not None, _held_by(log, holder))
    final = "cancelled" if run.cancel is not None and state in ("succeeded", "queued") else state
    if final == "queued":
        run.state = "queued"
        run.attempt -= refund
        run.resting = rest
        log.holder, log.due = None, FUTURE if rest else PAST
        return (True, "queued", (), False, NOTHING)
    events = log.write(token, [*told, (terminal_n, f"run.{final}", position)])
    _end(run, final)
    run.dead = dead and final == "failed"
    if take_next:
        held = _take(log, holder)
        return (True, final, events, held is not None and held.ring, held)
    more = log.queued() is not None or bool(log.mail)
    log.holder, log.due = None, PAST if more else NEVER
    return (True, final, events, more, NOTHING)


def check(log: Log) -> None:
    """The invariants, by name. Asserted after each step."""
    active = [r for r in log.runs if r.state in ("running", "waiting")]
    assert len(active) <= 1, "one_runner: two runs are active"
    running = [r for r in active if r.state == "running"]
    assert (log.holder is None) == (not running), "one_runner: a lease is a running run's"
    assert all(r.token == log.token for r in running), "one_runner: the run's token is the lease's"

    cursors = [e.cursor for e in log.events]
    assert cursors == sorted(set(cursors)), "no_stale_write: something was written under an old token"
    for before, after in zip([(0, 0), *cursors], log.events, strict=False):
        assert after.prev == before, "cursor_monotone: an event does not follow the one before it"

    begun = [r.position for r in log.runs if r.token is not None]
    for run in log.runs:
        if begun and run.position < begun[-1]:
            over = run.state in TERMINAL
            assert over, "session_order: a run has begun before the one before it was over"
    said = [e.run for e in log.events if e.type == "user.message"]
    assert said == sorted(set(said)), "session_order: messages are told once, in order"

    told = [(e.type, e.run) for e in log.events] + log.mail
    for run in log.runs:
        ends = [type_ for type_, of in told if of == run.position and type_.removeprefix("run.") in TERMINAL]
        wanted = [f"run.{run.state}"] if run.state in TERMINAL else []
        assert ends == wanted, "ack_is_durable: each end is told exactly once"

    todo = bool(log.queued() or active or log.mail)
    assert not todo or log.due != NEVER, "ack_is_durable: there is something to do and nobody will look"
    if log.due == FUTURE and log.holder is None:
        first = log.queued()
        parked = bool(active) and active[0].approval in ("pending", "late")
        resting = first is not None and first.resting
        assert parked or resting, "ack_is_durable: nobody holds the log, and what is due is put off"
        assert resting or not log.mail, "ack_is_durable: mail waits, and what is due is put off"
    assert not any(r.resting and r.state == "running" for r in log.runs), "bounded: an attempt began before its time"
    assert all(r.attempt <= ATTEMPTS_MAX for r in log.runs), "bounded: more attempts than there may be"
