"""What the offline model answers to whoever asks it for a summary: the first sentence of each user message."""

import json
import re

ASKED = "You write the notes from which a conversation is taken up again"
"""How the runtime adapter's instruction begins; behind it come JSON objects, one a line."""

HEAD = "(offline model) What each message began with:"

WORDS_MAX = 1000
"""Words of a summary, where the instruction names no bound."""

_BOUND = re.compile(r"at most (\d+) words")
_ORDER = re.compile(r"(?:^|(?<=\s))#[a-z_]+(?:=\S*)?")
_SENTENCE = re.compile(r"[^\n.!?。！？]+(?:[.!?](?=\S)[^\n.!?。！？]*)*[.!?。！？]?")


def summary_of(system: str, said: str) -> str | None:
    """Answer the summary, the newest lines that fit; None if no summary is asked for."""
    if not system.startswith(ASKED):
        return None
    bound = _BOUND.search(system)
    room = int(bound[1]) if bound else WORDS_MAX
    found = [line for text in said.split("\n") for line in _lines(text)]
    kept: list[str] = []
    for line in reversed(list(dict.fromkeys(found))):
        room -= len(line.split())
        if room < 0:
            break
        kept.append(line)
    return "\n".join([HEAD, *reversed(kept)])


def _lines(text: str) -> list[str]:
    try:
        value = json.loads(text)
    except ValueError:
        return []
    if not isinstance(value, dict):
        return []
    if "notes" in value:
        return [line for line in str(value["notes"]).split("\n") if line != HEAD]
    sentence = _SENTENCE.search(_ORDER.sub("", str(value.get("text")))) if value.get("role") == "user" else None
    line = " ".join(sentence[0].split()) if sentence else ""
    return [line] if line else []
