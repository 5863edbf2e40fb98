"""What a call would do, in one line, for whoever is asked about it: it may be written to mislead."""

from collections.abc import Callable

from retinue_policy.domain.tools.arguments import Arguments, canonical
from retinue_policy.domain.tools.catalogue import is_mcp

SUMMARY_LENGTH_MAX = 500
"""Characters of a summary. Of what is longer the first and the last are told, and how many are left out."""

_TAIL_SHARE = 3
"""A third of what is told of a long text is its end, where what matters may be hidden."""


def summary_of(tool: str, arguments: Arguments) -> str:
    """Say in one line of at most SUMMARY_LENGTH_MAX printable characters what a call would do."""
    said = shortened(_SAID.get(tool, _other)(tool, arguments), SUMMARY_LENGTH_MAX)
    return shortened(visible(said), SUMMARY_LENGTH_MAX)  # made visible, it may have grown


def visible(text: str) -> str:
    """Make what cannot be seen, or changes how other characters are seen, visible; the rest stays."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shortened(text: str, length: int) -> str:
    """Keep the first and the last characters, with a note of how many are left out."""
    if len(text) <= length:
        return text
    note = f" … ({len(text):,} characters) … "
    tail = (length - len(note)) // _TAIL_SHARE
    return text[: length - len(note) - tail] + note + text[len(text) - tail :]


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    return value if isinstance(value, str) else "?"


def _exec(_: str, arguments: Arguments) -> str:
    cwd = arguments.get("cwd")
    where = f" (in {cwd})" if isinstance(cwd, str) and cwd else ""
    stdin = arguments.get("stdin")
    given = f", with the input: {stdin}" if isinstance(stdin, str) and stdin else ""
    return f"Run{where}: {_text(arguments, 'command')}{given}"


def _python(_: str, arguments: Arguments) -> str:
    return f"Run Python: {_text(arguments, 'code')}"


def _delete(_: str, arguments: Arguments) -> str:
    everything = arguments.get("recursive") not in (None, False)
    return f"Delete {_text(arguments, 'path')}" + (", with everything in it" if everything else "")


def _write(_: str, arguments: Arguments) -> str:
    return f"Write {_text(arguments, 'path')}: {_text(arguments, 'content')}"


def _edit(_: str, arguments: Arguments) -> str:
    everywhere = " everywhere" if arguments.get("all") not in (None, False) else ""
    return (
        f"Edit {_text(arguments, 'path')}{everywhere}: {_text(arguments, 'old_text')} → {_text(arguments, 'new_text')}"
    )


def _memory_note(_: str, arguments: Arguments) -> str:
    note = ": ".join(_text(arguments, name) for name in ("title", "text") if name in arguments)
    facts = arguments.get("facts")
    if not isinstance(facts, list):
        return f"Note {note or '?'}"
    texts = [_text(fact, "text") if isinstance(fact, dict) else "?" for fact in facts]
    return f"Remember: {' | '.join([*texts, note] if note else texts)}"


def _schedule_task(_: str, arguments: Arguments) -> str:
    zone = f" ({_text(arguments, 'time_zone')})" if arguments.get("time_zone") else ""
    return f"Schedule {_text(arguments, 'cron')}{zone}: {_text(arguments, 'text')}"


def _other(tool: str, arguments: Arguments) -> str:
    if is_mcp(tool):
        server, _, name = tool.removeprefix("mcp__").partition("__")
        return f"Call {name} of {server} with {canonical(arguments)}"
    return f"Call {tool} with {canonical(arguments)}"


_SAID: dict[str, Callable[[str, Arguments], str]] = {
    "exec": _exec,
    "python": _python,
    "read": lambda _, arguments: f"Read {_text(arguments, 'path')}",
    "list": lambda _, arguments: f"List {_text(arguments, 'path') if 'path' in arguments else 'the workspace'}",
    "write": _write,
    "edit": _edit,
    "delete": _delete,
    "memory_note": _memory_note,
    "memory_search": lambda _, arguments: f"Look in memory for {_text(arguments, 'query')}",
    "schedule_task": _schedule_task,
}
