"""People who talk to their agents, each in one way; a round of each is a few runs, and is repeated while parts die."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from harness.checks import BEGUN_AT_A_PAUSE, mark
from harness.clients import PATIENCE_S, PAUSE_S, Client
from harness.history import Event, Intent

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
MS = 25
"""Between two words: a run lasts long enough to be hit, and a silence is seen at once."""

BEGIN_TIMEOUT_S = 10.0
"""How long somebody waits for a run to begin before going on; nothing depends on its having begun."""

END_TIMEOUT_S = 45.0
LATER_S = 0.5
OVER = ["succeeded"]
STOPPABLE = ["succeeded", "cancelled"]


Hurry = Callable[[str], Awaitable[None]]


class Person:
    """One contact of one tenant, and the client that talks in its name."""

    def __init__(self, client: Client, contact: str, rng: random.Random, receiver: Any, hurry: Hurry) -> None:
        self.client = client
        self.contact = contact
        self.rng = rng
        self.receiver = receiver
        """Where webhooks lead to."""
        self.hurry = hurry
        """Brings a schedule's hour about."""
        self.deleted = False
        self.mark = mark(client.tenant, contact)
        self._number = 0

    def intent(
        self, text: str, ends: list[str], answer: str | None, *, kind: str = "chat", order: bool = True
    ) -> Intent:
        """A new thing to ask for."""
        self._number += 1
        key = f"{self.contact}-{self._number}"
        place = self._number if order else 0
        return Intent(self.client.tenant, self.contact, key, text, ends, answer, place, kind)

    def words(self, count: int) -> str:
        """A text that bears the mark."""
        return " ".join([f"{self.mark}", *(self.rng.choice(WORDS) for _ in range(count))])

    def plain(self, count: int = 8, ends: list[str] = OVER, **more: Any) -> Intent:
        """Something that the model is to repeat."""
        answer = self.words(count)
        return self.intent(f"#delay={MS} #echo={answer}", ends, answer, **more)

    def script(self, actions: list[list[Any]], said: list[str], ends: list[str] = OVER, **more: Any) -> Intent:
        """Something that the scripted runtime is to do."""
        return self.intent("#script " + json.dumps(actions), ends, "\n\n".join(said), **more)

    async def send(self, intent: Intent, *, refused: tuple[int, ...] = (), **body: Any) -> str | None:
        """Send a message; answers its run."""
        return await self.client.submit(intent, self.path("messages"), {"text": intent.text, **body}, refused=refused)

    def path(self, last: str) -> str:
        """A path below the contact."""
        return f"/v1/contacts/{self.contact}/{last}"

    async def ended(self, run_id: str | None) -> None:
        """Wait until a run's end was told."""
        if run_id and not await self.client.board.until_over(run_id, END_TIMEOUT_S):
            self.client.history.errors.append(f"{run_id}: no end was told in {END_TIMEOUT_S:.0f} s")

    async def begun(self, run_id: str | None, type_: str = "assistant.delta") -> None:
        """Wait until a run says something."""
        if run_id:
            await self.client.board.until_told(run_id, type_, BEGIN_TIMEOUT_S)


def _steps(person: Person, count: int) -> tuple[list[list[Any]], list[str]]:
    """Model steps, each with a message of its own and recorded."""
    actions: list[list[Any]] = []
    said = []
    for number in range(1, count + 1):
        said.append(f"{person.words(4)} step{number}")
        actions += [["step", f"step{number}"], ["words", said[-1], MS], ["say"], ["checkpoint"]]
    return actions, said


async def chats(person: Person) -> None:
    """Sends three messages at once, the second from several replicas."""
    first = person.plain()
    second, third = person.plain(), person.plain()
    await person.send(first)
    body = {"text": second.text}
    person.client.history.intents.append(second)
    again = [person.client.repeat(second, person.path("messages"), body) for _ in range(3)]
    await asyncio.gather(*again)
    last = await person.send(third)
    await person.client.repeat(first, person.path("messages"), {"text": first.text})
    await person.ended(last)


async def steps(person: Person) -> None:
    """Has a run make several recorded steps."""
    await person.ended(await person.send(person.script(*_steps(person, 4))))


async def tools(person: Person) -> None:
    """Has a run call tools between its steps."""
    actions, said = _steps(person, 2)
    last = person.words(3)
    actions[4:4] = [["tool", "call1"], ["calls", [f"{BEGUN_AT_A_PAUSE}1", f"{BEGUN_AT_A_PAUSE}2"]]]
    actions += [["card", person.mark], ["tool", "call2"], ["calls", [f"{BEGUN_AT_A_PAUSE}3"], True]]
    actions += [["reasoning", "so"], ["words", last, MS]]
    await person.ended(await person.send(person.script(actions, [*said, last]), reasoning=True))


async def approves(person: Person) -> None:
    """Lets a run wait for an approval, and decides it; then stops another that waits."""
    said, call = person.words(3), f"{BEGUN_AT_A_PAUSE}1"
    actions: list[list[Any]] = [["words", said, MS], ["say"], ["approval", call], ["calls", [call]]]
    run = await person.send(person.script(actions, [said, "allow_once"]))
    await decide(person, run, "allow_once")
    await person.ended(run)
    said = person.words(2)
    other = await person.send(
        person.script([["words", said, MS], ["say"], ["approval", "ask1"]], [said], ["cancelled"])
    )
    await person.begun(other, "approval.requested")
    await _cancel(person, other)
    await person.ended(other)


async def decide(person: Person, run: str | None, decision: str) -> None:
    """Answer what a run asks for, once it does."""
    if run is None or not await person.client.board.until_told(run, "approval.requested", END_TIMEOUT_S):
        return
    response = await person.client.call("GET", "/v1/approvals", params={"state": "pending", "page_size": 200})
    asked = [a for a in response.json()["approvals"] if a["run_id"] == run] if response else []
    for approval in asked:
        path = f"/v1/approvals/{approval['approval_id']}:decide"
        # 400: it was decided by a try before this one, whose answer was lost.
        await person.client.call("POST", path, json={"decision": decision}, expected=(200, 400))


async def _cancel(person: Person, run: str | None) -> None:
    if run is not None:
        await person.client.call("POST", f"/v1/runs/{run}:cancel", json={})


async def interrupts(person: Person) -> None:
    """Does not wait for answers: is refused, interrupts, rolls back."""
    first = await person.send(person.plain(30, STOPPABLE))
    await person.begun(first)
    # 409: busy. It is not if the first run was faster than a repeated try.
    await person.send(person.plain(order=False, ends=STOPPABLE), on_busy="reject", refused=(409,))
    second = await person.send(person.plain(30, STOPPABLE), on_busy="interrupt")
    await person.begun(second)
    await person.ended(await person.send(person.plain(), on_busy="rollback"))


async def cancels(person: Person) -> None:
    """Stops a run that waits, and one that goes on."""
    first = await person.send(person.plain(30, STOPPABLE))
    second = await person.send(person.plain(4, STOPPABLE))
    await _cancel(person, second)
    await person.begun(first)
    await _cancel(person, first)
    await person.ended(first)
    await person.ended(second)


async def resets(person: Person) -> None:
    """Begins afresh between two messages."""
    await person.send(person.plain())
    await person.client.call("POST", f"/v1/contacts/{person.contact}:reset", json={})
    await person.ended(await person.send(person.plain()))


async def deletes(person: Person) -> None:
    """Has everything removed while a run goes on, and begins anew."""
    await person.begun(await person.send(person.plain(30, STOPPABLE)))
    person.deleted = True
    # 404: removed by a try before this one, whose answer was lost.
    await person.client.call("DELETE", f"/v1/contacts/{person.contact}", expected=(200, 404))
    person.client.board.forget((person.client.tenant, person.contact))
    await person.ended(await person.send(person.plain()))


async def delegates(person: Person) -> None:
    """Hands out tasks; one fails at first, one is for later, one is stopped."""
    sent = []
    for actions in ([["words", person.mark, MS]], [["fail_once"], ["words", person.mark, MS]]):
        sent.append(await _task(person, person.script(actions, [person.mark], kind="tidy", order=False)))
    later = person.script([["words", person.mark, MS]], [person.mark], kind="tidy", order=False)
    run_at = datetime.now(UTC) + timedelta(seconds=LATER_S)
    sent.append(await _task(person, later, run_at=run_at.isoformat()))
    slow = person.script([["words", person.words(40), MS]], [], STOPPABLE, kind="tidy", order=False)
    slow.answer = None
    sent.append(await _task(person, slow))
    await _cancel(person, sent[-1])
    for run in sent:
        await person.ended(run)


async def _task(person: Person, intent: Intent, **more: Any) -> str | None:
    body = {"contact": person.contact, "kind": intent.kind, "input": {"text": intent.text}, **more}
    return await person.client.submit(intent, "/v1/tasks", body)


async def streams(person: Person) -> None:
    """Reads the answer as the stream of the message itself, and resumes by the run."""
    intent = person.plain(16)
    person.client.history.intents.append(intent)
    client, found = person.client, []
    path: str | None = person.path("messages:stream")
    request: dict[str, Any] = {
        "method": "POST", "json": {"text": intent.text}, "headers": {"idempotency-key": intent.key}
    }  # fmt: skip
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while path and asyncio.get_running_loop().time() < end:
        after = f"{found[-1].cursor[0]}-{found[-1].cursor[1]}" if found else ""
        async for event in client.events(path, after, **request):
            if not found and event.run_id:
                client.answered(intent, "acknowledged", 200, event.run_id)
            found.append(event)
        if found:
            path, request = f"/v1/runs/{found[-1].run_id}/events", {}
            if (found[-1].type.startswith("run.s") and found[-1].type != "run.started") or found[
                -1
            ].type == "run.failed":
                path = None
        await asyncio.sleep(PAUSE_S)
    _check_stream(person, found)


def _check_stream(person: Person, events: list[Event]) -> None:
    cursors = [event.cursor for event in events]
    if cursors != sorted(set(cursors)) or len({event.run_id for event in events}) > 1:
        person.client.history.errors.append(f"stream of {person.contact}: not each event once, in order: {cursors}")


async def completes(person: Person) -> None:
    """Uses OpenAI's API, streamed and whole."""
    for stream in (True, False):
        intent = person.plain(16)
        person.client.history.intents.append(intent)
        body = {
            "model": "retinue", "messages": [{"role": "user", "content": intent.text}], "user": person.contact,
            "stream": stream,
        }  # fmt: skip
        await _complete(person, intent, body)


async def _complete(person: Person, intent: Intent, body: dict[str, Any]) -> None:
    """Ask with the same key until an answer came to its end."""
    client = person.client
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while asyncio.get_running_loop().time() < end:
        response = await client.call("POST", "/v1/chat/completions", key=intent.key, json=body)
        if response is None:
            return
        text, name = _completion(response.text, streamed=body["stream"])
        if text is not None:
            client.answered(intent, "acknowledged", 200, name.removeprefix("chatcmpl-"))
            if text != intent.answer:
                client.history.errors.append(f"completion {name}: {text!r} instead of {intent.answer!r}")
            return
        if name and await _has_failed(person, name.removeprefix("chatcmpl-")):
            client.answered(intent, "acknowledged", 200, name.removeprefix("chatcmpl-"))
            return
        await asyncio.sleep(PAUSE_S)


async def _has_failed(person: Person, run: str) -> bool:
    """Whether a run has used up its attempts, which no repetition changes."""
    response = await person.client.call("GET", f"/v1/runs/{run}")
    return response is not None and response.json()["run"]["state"] == "failed"


def _completion(text: str, *, streamed: bool) -> tuple[str | None, str]:
    """Read an answer's text and name; no text if its stream ended before its time."""
    if not streamed:
        found = json.loads(text)
        return found["choices"][0]["message"]["content"], found["id"]
    chunks = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    if not chunks or chunks[-1] != "[DONE]":
        return None, json.loads(chunks[0]).get("id", "") if len(chunks) > 1 else ""
    read = [json.loads(chunk) for chunk in chunks[:-1]]
    return "".join(choice["delta"].get("content", "") for one in read for choice in one["choices"]), read[0]["id"]


async def suffers(person: Person) -> None:
    """Meets models that fail, show cards, think aloud, have no room yet, and need a second attempt."""
    await person.send(person.intent(f"#status=400 {person.mark}", ["failed"], None))
    await person.send(person.intent(f"#card {person.mark}", OVER, None))
    await person.send(
        person.intent(f"#tokens=4 #delay={MS} #reasoning={person.mark} hm", OVER, "t0 t1 t2 t3"), reasoning=True
    )
    said = person.words(3)
    await person.send(person.script([["not_yet"], ["words", said, MS]], [said]))
    await person.ended(await person.send(person.script([["fail_once"], ["words", said, MS]], [said])))


async def waits(person: Person) -> None:
    """Waits for the answer in one call."""
    run = await person.send(person.plain(20))
    for _ in range(10):
        response = await person.client.call("POST", f"/v1/runs/{run}:wait", params={"timeout_s": 10})
        if response is None or response.json()["run"]["state"] in ("succeeded", "failed", "cancelled"):
            return


Way = Callable[[Person], Awaitable[None]]
WAYS: tuple[Way, ...] = (
    chats, steps, tools, approves, interrupts, cancels, resets, deletes, delegates, streams, completes, suffers, waits,
)  # fmt: skip
