"""What must hold of every history, whatever died: one function for each promise, which names what breaks it."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from harness.history import EARLY, TENTATIVE, TERMINAL, Contact, Cursor, Event, History, Run, Watch, parse_cursor

ATTEMPTS_MAX = 3
"""A run whose attempts were all lost may fail, whatever it was asked."""

MAIL = ("task.finished", "run.cancelled", "approval.decided")
"""What others have to say of a run comes in between another one's events."""

BY_THE_CLOCK = "scheduled"
"""The kind of tasks that a schedule asks for."""

BY_ITSELF = "memory.extract"
"""The kind of tasks that the mesh asks for by itself; nobody hears of their end."""

BEGUN_AT_A_PAUSE = "paused-"
"""What the ids of calls begin with whose start is recorded at a pause."""

MARK = re.compile(r"m:(\w+):([\w-]+):")
"""Each text bears the tenant and the contact that it was meant for."""

Check = Callable[[History], Iterator[str]]


def mark(tenant: str, contact: str) -> str:
    """The mark of a tenant's contact."""
    return f"m:{tenant}:{contact}:"


def durable(events: list[Event]) -> list[Event]:
    """Those that are recorded."""
    return [event for event in events if event.type not in TENTATIVE]


def _standing(history: History) -> list[Contact]:
    return [contact for contact in history.contacts if not contact.deleted]


def _chats(contact: Contact) -> list[Run]:
    return sorted((run for run in contact.runs if run.kind == "chat"), key=lambda run: run.position)


def ack_is_durable(history: History) -> Iterator[str]:
    """An acknowledged run is there, has ended as it may, and its end is in the log."""
    intents = {(intent.tenant, intent.key): intent for intent in history.intents}
    contacts = {(contact.tenant, contact.name): contact for contact in history.contacts}
    for answer in history.answers:
        contact = contacts[answer.tenant, answer.contact]
        if answer.outcome != "acknowledged" or contact.deleted:
            continue
        run = next((run for run in contact.runs if run.run_id == answer.run_id), None)
        if run is None:
            yield f"{answer.run_id} ({answer.key}) was acknowledged and is gone"
            continue
        intent = intents[answer.tenant, answer.key]
        exhausted = run.state == "failed" and run.attempt >= ATTEMPTS_MAX
        if run.state not in intent.ends and not exhausted:
            yield f"{run.run_id} ({answer.key}) is {run.state}, not {' or '.join(intent.ends)}"
        if run.state == "succeeded" and intent.answer is not None and run.output != intent.answer:
            yield f"{run.run_id} ({answer.key}) said {run.output!r}, not {intent.answer!r}"
        ends = [event.type for event in contact.log if event.run_id == run.run_id and event.type in TERMINAL]
        if run.kind == "chat" and f"run.{run.state}" not in ends:
            yield f"{run.run_id} ({answer.key}) is {run.state}; the log says {ends}"


def same_key_same_answer(history: History) -> Iterator[str]:
    """One key, one run, one message."""
    runs: dict[tuple[str, str], set[str]] = defaultdict(set)
    for answer in history.answers:
        if answer.outcome == "acknowledged":
            runs[answer.tenant, answer.key].add(answer.run_id)
    known = {(intent.tenant, intent.key) for intent in history.intents}
    for contact in _standing(history):
        for run in contact.runs:
            key = run.key or run.retry_of
            if key and (run.retry_of or (contact.tenant, key) in known):
                runs[contact.tenant, key].add(run.run_id)
            elif run.kind not in (BY_THE_CLOCK, BY_ITSELF):
                yield f"{run.run_id} is there and nobody asked for it"
        said = Counter(event.run_id for event in contact.log if event.type == "user.message")
        for run in _chats(contact):
            if said[run.run_id] != (run.start_time is not None):
                yield f"{run.run_id} has {said[run.run_id]} user.message"
    for (tenant, key), found in runs.items():
        if len(found) > 1:
            yield f"{tenant} {key} is {len(found)} runs: {', '.join(sorted(found))}"


def session_order(history: History) -> Iterator[str]:
    """Runs of a contact execute in the order in which they were accepted, one after another."""
    for contact in _standing(history):
        before = 0.0
        for run in _chats(contact):
            if run.start_time is None:
                continue
            if run.start_time < before:
                yield f"{run.run_id} started {before - run.start_time:.6f} s before its predecessor's end"
            before = max(before, run.end_time or run.start_time)
        told = list(dict.fromkeys(e.run_id for e in contact.log if e.type == "user.message"))
        accepted = [run.run_id for run in _chats(contact) if run.run_id in told]
        if told != accepted:
            yield f"{contact.tenant} {contact.name}: told in the order {told}, accepted {accepted}"
        positions = {run.key: run.position for run in contact.runs}
        sent = sorted(
            (i.order, positions[i.key])
            for i in history.intents
            if (i.tenant, i.contact) == (contact.tenant, contact.name) and i.order and i.key in positions
        )
        if [position for _, position in sent] != sorted(position for _, position in sent):
            yield f"{contact.tenant} {contact.name}: sent in order, accepted at positions {sent}"


def one_runner(history: History) -> Iterator[str]:
    """A run has one end, nothing of it comes after, and no two runs of a contact are told at once."""
    for contact in _standing(history):
        current = ""
        ended: set[str] = set()
        for event in contact.log:
            run = event.run_id
            if event.type == "task.finished":
                continue
            if run in ended:
                yield f"{run}: {event.type} at {event.cursor} after its end"
            if event.type in TERMINAL:
                ended.add(run)
            if current and run != current and event.type not in MAIL:
                yield f"{run}: {event.type} at {event.cursor} while {current} goes on"
            elif run and event.type not in MAIL:
                current = run
            if run == current and event.type in TERMINAL:
                current = ""
        yield from _tasks_are_told_once(contact)


def _tasks_are_told_once(contact: Contact) -> Iterator[str]:
    told = Counter(event.run_id for event in contact.log if event.type == "task.finished")
    for run in contact.runs:
        if run.kind != "chat" and told[run.run_id] != (run.kind != BY_ITSELF):
            yield f"{run.run_id} has ended, and its contact has heard of it {told[run.run_id]} times"


def cursor_monotone(history: History) -> Iterator[str]:
    """Who resumes sees every durable event once, in order, and nothing that is not one."""
    contacts = {(contact.tenant, contact.name): contact for contact in history.contacts}
    for watch in history.watches:
        contact = contacts[watch.tenant, watch.contact]
        cursors = [event.cursor for event in watch.events]
        for one, next_ in zip(cursors, cursors[1:], strict=False):
            if next_ <= one:
                yield f"{watch.name}: {next_} after {one}"
        yield from _complete(watch, contact)


def _complete(watch: Watch, contact: Contact) -> Iterator[str]:
    seen = {event.cursor: event for event in durable(watch.events)}
    logged = {event.cursor: event for event in durable(contact.log)}
    for cursor, event in logged.items():
        if cursor not in seen:
            # Only the bus had it: its attempt was lost before the commit, and who was away need not have heard of it.
            if cursor not in contact.unrecorded or not _retracted(event, contact.log):
                yield f"{watch.name}: has not seen {event.type} at {cursor}"
        elif (event.type, event.data) != (seen[cursor].type, seen[cursor].data):
            yield f"{watch.name}: saw {seen[cursor].type} at {cursor}, which is another {event.type}"
    if contact.deleted:
        return
    for cursor, event in seen.items():
        if cursor not in logged and not _retracted(event, watch.events):
            yield f"{watch.name}: saw {event.type} at {cursor}, which the log does not have"


def _retracted(event: Event, events: list[Event]) -> bool:
    """Whether an attempt told this early, and another took its place."""
    last = max(other.cursor[0] for other in events if other.run_id == event.run_id)
    return event.type in EARLY and last > event.cursor[0]


def shown(events: list[Event]) -> list[Event]:
    """What is left for a client that drops what it is told to."""
    kept: list[Event] = []
    for event in events:
        rewind = event.data.get("rewind_to")
        if rewind:
            to = parse_cursor(rewind)
            kept = [one for one in kept if one.cursor <= to]
        kept.append(event)
    return kept


def _after_gaps(events: list[Event]) -> set[Cursor]:
    """Cursors of events that do not follow the one before: what was numbered between was never told."""
    gaps = set()
    last = (0, 0)
    for event in events:
        token, number = event.cursor
        if number != (last[1] + 1 if token == last[0] else 1):
            gaps.add(event.cursor)
        last = event.cursor
    return gaps


def deltas_make_the_text(history: History) -> Iterator[str]:
    """What is shown piece by piece, and rewound where that is told, is what was said in the end.

    Pieces may be lost, with their cursors, together with the bus, or with a holder that dies between the commit of the
    whole and telling the last of its pieces: they are tentative, and the message holds the whole.
    """
    for contact in _standing(history):
        outputs = {run.run_id: run.output for run in _chats(contact) if run.state == "succeeded"}
        logs = [("the log", contact.log)]
        logs += [(w.name, w.events) for w in history.watches if (w.tenant, w.contact) == (contact.tenant, contact.name)]
        for name, events in logs:
            messages: dict[str, list[str]] = defaultdict(list)
            pieces: dict[str, str] = defaultdict(str)
            gaps = _after_gaps(events)
            holed: set[str] = set()
            for event in shown(events):
                if event.cursor in gaps:
                    holed.add(event.run_id)
                if event.type == "assistant.delta":
                    before = "" if event.data.get("replace") else pieces[event.run_id]
                    pieces[event.run_id] = before + event.data["text"]
                elif event.type == "assistant.message":
                    text, made = event.data["text"], pieces.pop(event.run_id, "")
                    messages[event.run_id].append(text)
                    lost = event.run_id in holed
                    holed.discard(event.run_id)
                    if lost and (history.bus_lost or (history.holder_lost and text.startswith(made))):
                        continue
                    if made != text and event.run_id in outputs:
                        yield f"{name}: {event.run_id} was shown as {made!r} and said {text!r}"
            for run_id, output in outputs.items():
                if "\n\n".join(messages[run_id]) != output:
                    yield f"{name}: {run_id} said {messages[run_id]!r}; its output is {output!r}"


def no_cross_tenant(history: History) -> Iterator[str]:
    """Every text that anybody is shown was meant for them."""
    for contact in history.contacts:
        own = (contact.tenant, contact.name)
        texts = [text for _, text in contact.messages] + [text for _, text in contact.thread]
        texts += [str(event.data) for event in contact.log] + [run.output or "" for run in contact.runs]
        for watch in history.watches:
            if (watch.tenant, watch.contact) == own:
                texts += [str(event.data) for event in shown(watch.events) if event.type not in TENTATIVE]
        for strange in {found for text in texts for found in MARK.findall(text)} - {own}:
            yield f"{own[0]} {own[1]} was shown what was meant for {strange[0]} {strange[1]}"


def goes_on_from_the_checkpoint(history: History) -> Iterator[str]:
    """A model step or a tool call that is recorded is never done again, and each is done once an attempt."""
    recorded: dict[tuple[str, str], Cursor] = {}
    for contact in history.contacts:
        for event in contact.log:
            if event.type == "assistant.message":
                recorded.update({(event.run_id, word): event.cursor for word in event.data["text"].split()})
            elif event.type == "tool.finished":
                recorded[event.run_id, event.data["call_id"]] = event.cursor
    times = Counter((line.run_id, line.name, line.token) for line in history.ledger)
    for (run_id, name, token), count in times.items():
        if count > 1:
            yield f"{run_id}: {name} was done {count} times under token {token}"
        done = recorded.get((run_id, name))
        if done is not None and token > done[0]:
            yield f"{run_id}: {name} was recorded at {done} and done again under token {token}"


def one_effect(history: History) -> Iterator[str]:
    """A call has begun in the log before it is made; one that must not be repeated is made once at most, and once if
    its end is recorded as known.
    """
    yield from _made_in_the_box(history)
    calls = [line for line in history.ledger if line.kind in ("call", "repeat")]
    times = Counter((line.run_id, line.name) for line in calls)
    for line in calls:
        if line.kind == "call" and times[line.run_id, line.name] > 1:
            yield f"{line.run_id}: {line.name} was made {times[line.run_id, line.name]} times"
    for contact in _standing(history):
        begun = {(e.run_id, e.data["call_id"], e.cursor[0]) for e in contact.log if e.type == "tool.started"}
        runs = {run.run_id for run in contact.runs}
        for line in calls:
            if line.run_id in runs and (line.run_id, line.name, line.token) not in begun:
                yield f"{line.run_id}: {line.name} was made under token {line.token}, where it has not begun"
        for event in (event for event in contact.log if event.type == "tool.finished"):
            name = event.data["call_id"]
            if name.startswith(BEGUN_AT_A_PAUSE) and event.data["ok"] and not times[event.run_id, name]:
                yield f"{event.run_id}: {name} is recorded as made and was not"


def _made_in_the_box(history: History) -> Iterator[str]:
    ends = {e.run_id: e.data for contact in _standing(history) for e in contact.log if e.type == "tool.finished"}
    for effect in history.effects:
        if effect.count > 1:
            yield f"{effect.run_id}: its command ran {effect.count} times"
        if effect.count < 1 and ends.get(effect.run_id, {}).get("ok"):
            yield f"{effect.run_id}: its command is recorded as run and was not"


def files_follow_the_log(history: History) -> Iterator[str]:
    """The conversation is listed as the log has it; thread.jsonl is as much of it as was written, each line once."""
    for contact in _standing(history):
        said = [e for e in contact.log if e.type in ("user.message", "assistant.message")]
        dropped = {e.run_id for e in contact.log if e.type == "run.cancelled" and "rewind_to" in e.data}
        anew = {run.retry_of for run in contact.runs}  # told by the run in its place
        kept = [e for e in said if e.run_id not in (anew if e.type == "user.message" else anew | dropped)]
        if contact.messages != [(event.run_id, event.data["text"]) for event in kept]:
            yield f"{contact.tenant} {contact.name}: the conversation is listed otherwise than logged"
        lines = [(event.cursor, event.data["text"]) for event in said]
        if contact.thread != lines[: len(contact.thread)]:
            yield f"{contact.tenant} {contact.name}: thread.jsonl is no beginning of the log"


def only_retryable_errors(history: History) -> Iterator[str]:
    """Whatever a client met could be repeated, and succeeded then."""
    yield from history.errors
    answered = {(a.tenant, a.key) for a in history.answers if a.outcome in ("acknowledged", "refused")}
    for intent in history.intents:
        if (intent.tenant, intent.key) not in answered:
            yield f"{intent.tenant} {intent.key} was repeated in vain"


CHECKS: tuple[Check, ...] = (
    ack_is_durable,
    same_key_same_answer,
    session_order,
    one_runner,
    cursor_monotone,
    deltas_make_the_text,
    no_cross_tenant,
    goes_on_from_the_checkpoint,
    one_effect,
    files_follow_the_log,
    only_retryable_errors,
)


def violations(history: History) -> list[str]:
    """Everything that breaks a promise, with the promise's name."""
    return [f"{check.__name__}: {found}" for check in CHECKS for found in check(history)]
