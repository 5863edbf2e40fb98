"""People who take along what was said, bring it back, and have things remembered for good."""

import asyncio

from retinue.portability.v1 import bundle_pb2

from harness.workload import Person


async def takes_along(person: Person) -> None:
    """Brings its conversation to a new contact, from two devices at once: it goes on once, word for word."""
    call, errors = person.client.call, person.client.history.errors
    await person.ended(await person.send(person.plain(4)))
    taken = await call("GET", person.path("bundle"))
    if taken is None:
        return
    brought = f"{person.contact}-{person.rng.randrange(1 << 32):08x}"
    path = f"/v1/contacts/{brought}"
    answers = await asyncio.gather(*(call("POST", f"{path}/bundle", content=taken.content) for _ in range(2)))
    sessions = {answer.json()["session_id"] for answer in answers if answer is not None}
    if len(sessions) > 1:
        errors.append(f"a bundle of {person.contact} was brought to {brought} as {', '.join(sorted(sessions))}")
    listed = await call("GET", f"{path}/messages", params={"page_size": 200})
    if listed is None:
        return
    told = [(message["role"], message["text"]) for message in listed.json()["messages"]]
    # One page of it, from the beginning on.
    if told != _said(taken.content)[: len(told)] or not told:
        errors.append(f"{brought} does not go on as {person.contact} ended")


def _said(bundle: bytes) -> list[tuple[str, str]]:
    parts = {part.name: part.content for part in bundle_pb2.Bundle.FromString(bundle).parts}
    held = bundle_pb2.MessagesPart.FromString(parts["messages"]).messages
    return [(message.role, message.text) for message in held]


async def remembers(person: Person) -> None:
    """Has a fact remembered by two devices at once, talks, and has it forgotten."""
    call, errors = person.client.call, person.client.history.errors
    path, text = person.path("facts"), person.words(6)
    answers = await asyncio.gather(*(call("POST", path, json={"text": text}) for _ in range(2)))
    facts = {answer.json()["fact"]["fact_id"] for answer in answers if answer is not None}
    await person.ended(await person.send(person.plain(4)))
    if await _kept(person, text) != sorted(facts) or len(facts) != 1:
        errors.append(f"{person.contact}: what was remembered once is there as {sorted(facts)}")
    for fact in facts:
        # 404: forgotten by a try before this one, whose answer was lost.
        await call("DELETE", f"{path}/{fact}", expected=(200, 404))
    if await _kept(person, text):
        errors.append(f"{person.contact}: what was forgotten is there")


async def _kept(person: Person, text: str) -> list[str]:
    """Read the ids under which a text is remembered."""
    listed = await person.client.call("GET", person.path("facts"), params={"page_size": 200})
    found = listed.json()["facts"] if listed is not None else []
    return sorted(fact["fact_id"] for fact in found if fact["text"] == text)


WAYS = (takes_along, remembers)
