"""A user's words on their way through a gateway: between two marks, so that they come out as they went in.

A gateway reads some messages as orders to itself (`/new` and `/reset` empty the session), trims them, and puts the time
in front and facts of its host behind them, unless they look as if that had been done. Between marks, nothing looks like
anything, and what was put around them is easily told from them.
"""

MARK = "\u2063"
"""INVISIBLE SEPARATOR: no white space, so that it is not trimmed, and of no width should it be seen after all."""


def enclose(text: str) -> str:
    """Write a message for a gateway."""
    return f"{MARK}{text}{MARK}"


def disclose(text: str) -> str:
    """Read a message that a gateway sends to a model; one without two marks stays as it is."""
    first, last = text.find(MARK), text.rfind(MARK)
    return text[first + 1 : last] if first < last else text
