"""Conversations to make bundles of, as events of a log."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from retinue_portability.domain.composing import Sources, compose
from retinue_portability.domain.content import Content, Cursor, Fact, Identity, Message, Settings
from retinue_portability.domain.context import Event, tell
from retinue_portability.format import sealed
from retinue_portability.format.signing import Signer

TENANT, AGENT, CONTACT, SESSION = "ten_a", "agt_a", "ann", "ses_a"
IDENTITY = Identity(TENANT, AGENT, CONTACT, SESSION)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = Signer(KEY)

CHATTER = (
    "how is it going over there", "that sounds good to them", "could you say it again please", "ok thanks a lot",
    "it was raining the whole way", "what do people usually do then", "haha fair enough", "let us see about that",
)  # fmt: skip


def said(at, role="user", text="hello", run_id=""):
    """A message of the log at a place, which is its attempt's token."""
    n = 1 if role == "user" else 9
    message_id = f"msg_{at}_{role}"
    return Event(Cursor(at, n), f"{role}.message", SESSION, run_id or f"run_{at}", message_id=message_id, text=text)


def turn(at, asked, answered):
    """A question and its answer."""
    return [said(at, "user", asked), said(at, "assistant", answered)]


def began(at, tool="read_file", arguments=None, call_id="c1", run_id=""):
    """A tool call's start."""
    named = arguments if arguments is not None else {"path": "notes/a.md"}
    run_id = run_id or f"run_{at}"
    return Event(Cursor(at, 3), "tool.started", SESSION, run_id, call_id=call_id, tool=tool, arguments=named)


def ended(at, result="done", ok=True, call_id="c1", run_id=""):
    """A tool call's end."""
    return Event(Cursor(at, 4), "tool.finished", SESSION, run_id or f"run_{at}", call_id=call_id, ok=ok, result=result)


def compacted(at, text, through, count=2, method="model", run_id=""):
    """A summary that was recorded."""
    return Event(
        Cursor(at, 2), "context.compacted", SESSION, run_id, summary=text, through=through, method=method,
        message_count=count,
    )  # fmt: skip


def chatter(first, count):
    """So many turns in which nothing is told."""
    events = []
    for at in range(first, first + count):
        events += turn(at, CHATTER[at % len(CHATTER)], f"{CHATTER[(at * 3) % len(CHATTER)]}, and so on and so forth")
    return events


def message(at, text, role="user"):
    """A message as rules see it."""
    return Message(f"msg_{at}", role, text, f"run_{at}", Cursor(at, 1))


def content(**parts):
    """A context of the one tenant."""
    return Content(IDENTITY, **parts)


def composed(events, *, budget=24_000, facts=(), profile=None, name="Ann", persona="", without_run_id=""):
    """A context put together from events."""
    told = tell(events, SESSION, without_run_id)
    settings = Settings(persona, "")
    sources = Sources(IDENTITY, name, "web", profile or {}, told, list(facts), settings, told.last)
    return compose(sources, budget)


def bundle_of(events, **more):
    """A bundle of events, signed by the one key."""
    return sealed.seal(composed(events, **more), SIGNER)


def fact(number, text, importance=5):
    """Something remembered."""
    return Fact(f"fct_{number:04d}", "general", "note", importance, text)


def everything():
    """A small conversation with something in every part."""
    events = [
        compacted(2, "Ann is planning a party.", Cursor(1, 9)),
        *turn(3, "Please read notes/a.md", "It says: call Bob. Bearer abcdefghijklmnopqrstuvwx"),
        began(3), ended(3, "call Bob"),
        *turn(4, "谢谢你", "不客气"),
    ]  # fmt: skip
    facts = [fact(1, "Ann likes tea", 9), fact(2, "Ann has a cat called Mochi")]
    return bundle_of(events, facts=facts, profile={"city": "Oslo", "age": 41}, persona="You are kind.")
