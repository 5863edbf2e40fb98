"""A context made to fit so many tokens: each part has its share, what was said last stays as it was said.

What does not fit is never left out in silence: older messages become part of the summary, and the rest is counted, by
part and rule, so that the manifest and every loss report can tell of it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from retinue_kit.tokens import estimate

from retinue_portability.domain import extract
from retinue_portability.domain.content import START, Attachment, Content, Message, Profile, Summary, Taken, ToolCall

TOKENS_MAX = 500_000
"""Whatever is asked for: of so many tokens, with all ids beside them, a bundle has less than 3 MiB."""

PROFILE_SHARE = 0.05
FACTS_SHARE = 0.15
CALLS_SHARE = 0.15
ATTACHMENTS_SHARE = 0.02
"""What each may have at most of the whole; what they leave is the messages'."""

SUMMARY_SHARE = 0.25
"""For the summary where there is older text to pick from; what is not used is the messages'."""

RECORDED_SHARE = 0.6
"""Of the summary's share, for what was summed up before: the sentences picked now get the rest."""

ALONE_SHARE = 0.5
"""For a summary that was recorded, where all that followed fits as it was said."""

MESSAGE_SHARE = 0.5
"""Of the messages' room, for one message that is not the last: a pasted book must not cost the conversation."""

MESSAGE_TOKENS_MAX = 200_000
"""Whatever the room: whoever brings a message back may send a megabyte."""

MESSAGES_MAX = 5000
FACTS_MAX = 2000
CALLS_MAX = 1000
ATTACHMENTS_MAX = 200
"""Items of each part."""

T = TypeVar("T")

OVER = "over_budget"
CUT = "cut_in_the_middle"
"""Rules by which something is missing: it had no room at all, or not all of it."""


def cut(text: str, tokens: int) -> str:
    """Leave out the middle of a text, with a mark that says how much, so that it has at most so many tokens.

    The text itself if it fits; empty where not even the mark does.
    """
    if estimate(text) <= tokens:
        return text
    low, high, best = 0, len(text), ""
    while low <= high:
        kept = (low + high) // 2
        head = kept - kept // 3
        tail = text[len(text) - (kept - head) :]
        made = f"{text[:head]} […{len(text) - kept} characters left out…] {tail}"
        if estimate(made) <= tokens:
            best, low = made, kept + 1
        else:
            high = kept - 1
    return best


def fit(content: Content, budget: int, messages_max: int = MESSAGES_MAX) -> tuple[Content, Taken]:
    """Make a context fit so many tokens, at most so many messages as they were; answers it, and what is missing."""
    taken: Taken = Counter()
    profile = _profile(content.profile, int(budget * PROFILE_SHARE), taken)
    facts = _first(content.facts, int(budget * FACTS_SHARE), FACTS_MAX, lambda fact: fact.text, "facts", taken)
    calls = _newest_calls(content.calls, int(budget * CALLS_SHARE), taken)
    files = _first(content.attachments, int(budget * ATTACHMENTS_SHARE), ATTACHMENTS_MAX, _path, "attachments", taken)
    small = replace(
        content, profile=profile, facts=facts, calls=calls, attachments=files, messages=(), summary=Summary()
    )
    summary, messages = _conversation(
        content.summary, content.messages, budget, small.token_count(), messages_max, taken
    )
    return replace(small, summary=summary, messages=messages), taken


def _path(attachment: Attachment) -> str:
    return attachment.path


def _profile(profile: Profile, room: int, taken: Taken) -> Profile:
    names = estimate(profile.display_name) + estimate(profile.channel)
    if names + estimate(profile.profile_json) <= room:
        return profile
    taken["profile", OVER] += 1
    return replace(profile, profile_json="") if names <= room else Profile()


def _first(
    items: Sequence[T], room: int, most: int, text_of: Callable[[T], str], part: str, taken: Taken
) -> tuple[T, ...]:
    """The first items for which there is room, in their order; a long one gives way to shorter ones behind it."""
    kept: list[T] = []
    for item in items:
        tokens = estimate(text_of(item))
        if tokens > room or len(kept) == most:
            taken[part, OVER] += 1
            continue
        room -= tokens
        kept.append(item)
    return tuple(kept)


def cost_of(call: ToolCall) -> int:
    """Tokens of a call."""
    return estimate(call.tool) + estimate(call.arguments_json) + estimate(call.result)


def _newest_calls(calls: Sequence[ToolCall], room: int, taken: Taken) -> tuple[ToolCall, ...]:
    start = len(calls)
    while start and len(calls) - start < CALLS_MAX:
        room -= cost_of(calls[start - 1])
        if room < 0:
            break
        start -= 1
    if start:
        taken["tool_calls", OVER] += start
    return tuple(calls[start:])


def _conversation(
    recorded: Summary, messages: Sequence[Message], budget: int, used: int, messages_max: int, taken: Taken
) -> tuple[Summary, tuple[Message, ...]]:
    """Share what is left between the summary and what was said last."""
    room = budget - used
    alone = min(estimate(recorded.text), int(room * ALONE_SHARE))
    start, kept, shortened = _newest(messages, room - alone, messages_max)
    if start == 0:
        return _shorten(recorded, alone, taken), _counted(kept, shortened, taken)
    share = int(room * SUMMARY_SHARE)
    start, kept, shortened = _newest(messages, room - share, messages_max)
    if start == 0:  # the summary's share is less than it alone would have had
        return _shorten(recorded, share, taken), _counted(kept, shortened, taken)
    former = _shorten(recorded, int(share * RECORDED_SHARE), taken)
    return _longer(former, messages[:start], share), _counted(kept, shortened, taken)


def _counted(kept: tuple[Message, ...], shortened: int, taken: Taken) -> tuple[Message, ...]:
    if shortened:
        taken["messages", CUT] += shortened
    return kept


def _newest(messages: Sequence[Message], room: int, messages_max: int) -> tuple[int, tuple[Message, ...], int]:
    """What was said last and fits, from a user's message on: where it begins, itself, and how many were cut."""
    kept: list[Message] = []
    left = room
    for message in reversed(messages[-messages_max:]):
        most = min(int(room * MESSAGE_SHARE) if kept else room, MESSAGE_TOKENS_MAX)
        if min(estimate(message.text), most) > left:
            break
        text = cut(message.text, most)
        if message.text and not text:
            break
        left -= estimate(text)
        kept.append(message if text == message.text else replace(message, text=text))
    kept.reverse()
    start = len(messages) - len(kept)
    if start:
        turn = next((at for at, message in enumerate(kept) if message.role == "user"), 0)
        start, kept = start + turn, kept[turn:]
    shortened = sum(new.text is not old.text for new, old in zip(kept, messages[start:], strict=True))
    return start, tuple(kept), shortened


def _shorten(summary: Summary, room: int, taken: Taken) -> Summary:
    text = cut(summary.text, room)
    if text != summary.text:
        taken["summary", CUT if text else OVER] += 1
    # Without its text it says nothing any more, but still that it stood for something.
    return replace(summary, text=text)


def _longer(former: Summary, older: Sequence[Message], share: int) -> Summary:
    """A summary that stands for further messages too."""
    room = share - estimate(former.text + "\n" if former.text else "")
    picked = extract.summarise(older, room)
    method = former.method or "extract"
    return Summary(
        "\n".join(filter(None, (former.text, picked))),
        max(former.through or START, older[-1].cursor),
        former.message_count + len(older),
        "mixed" if method == "model" else method,
    )
