"""People whose agents use the mesh's own tools, in the box, and with a person's word where that is asked for."""

import json

from harness.workload import MS, OVER, Person, decide

COMMAND_S = 0.4
"""How long a command goes on after its effect: so that deaths meet calls whose end nobody knows."""


async def works(person: Person) -> None:
    """Has a command run that leaves a line behind each time that it runs, in a session that has no box yet."""
    await person.client.call("POST", f"/v1/contacts/{person.contact}:reset", json={}, expected=(200, 404))
    said, done = person.words(2), person.words(2)
    intent = person.intent("", OVER, f"{said}\n\n{done}")
    intent.effect = intent.key
    call = json.dumps({"command": f"echo once >> {intent.effect}; cat {intent.effect}; sleep {COMMAND_S}"})
    intent.text = f"#delay={MS} #say={said}\n#tool=exec {call}\n#then\n#say={done}"
    await person.ended(await person.send(intent))


async def tidies(person: Person) -> None:
    """Has a file written and removed, which a person is asked about."""
    name, done = f"{person.contact}-note", person.words(2)
    write = json.dumps({"path": name, "content": person.mark})
    remove = json.dumps({"path": name})
    text = f"#delay={MS} #tool=write {write}\n#then\n#tool=delete {remove}\n#then\n#say={done}"
    run = await person.send(person.intent(text, OVER, done))
    await decide(person, run, person.rng.choice(["allow_once", "deny"]))
    await person.ended(run)


WAYS = (works, tidies)
