"""Texts of any length, made short enough."""

from retinue_runtime_adapter.tools.ports import RESULT_LENGTH_MAX

NOTE_LENGTH_MAX = 64
"""Characters for the note of what was left out."""


def bounded(text: str, length_max: int = RESULT_LENGTH_MAX) -> str:
    """A text, or its first and its last half with a note of what was left out between them."""
    if len(text) <= length_max:
        return text
    kept = max(2, length_max - NOTE_LENGTH_MAX)
    head, tail = kept - kept // 2, kept // 2
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"


def plain(text: str) -> str:
    """A text that every protocol can carry: without halves of letters and without NUL."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
