"""What is remembered for good: how much of it, and how it is found again.

A fact is found by the parts of its words, and by meaning where a model makes vectors. Parts are three letters each of
words that are written with an alphabet, and one or two characters of writing that leaves no blanks between words, so
that Chinese is found as well, a single character too.
"""

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FACT = "fct"
"""What their ids begin with."""

FACTS_MAX = 1000
"""Facts of one contact, and as many that concern a tenant. A search looks at each of them."""

GRAMS_MAX = 1500
"""Parts that are kept of one fact: all of what two thousand characters usually have."""

QUERY_GRAMS_MAX = 64
"""Parts of a query that are looked for; what is behind them does not count."""

DIMENSIONS = 256
"""Of the vectors that are made without a model."""

LEXICAL = "lexical-1"
"""Name of the way in which those are made. Another way needs another name: kept vectors are compared by name."""

PAGE_SIZE_MAX_BYTES = 1024 * 1024
"""Of the facts of a contact as one file; a thousand usual ones have a tenth of it."""

DOMAIN_DEFAULT = "general"
KIND_DEFAULT = "note"
IMPORTANCE_DEFAULT = 5

_WIDE = ("Lo", "Lm")
"""Letters without case: of Chinese, Japanese, Thai and others that may write without blanks. Where one of those does
write blanks, two characters are found as well."""


@dataclass(frozen=True, slots=True)
class Vector:
    """What a text means, as numbers; only those of one model are compared."""

    model: str
    values: Sequence[float]

    def written(self) -> str:
        """As the database reads it."""
        return f"[{','.join(f'{value:.6g}' for value in self.values)}]"


def page(contact: str, facts: Iterable[tuple[str, str, int, str, str]]) -> str:
    """Write facts as Markdown, the same bytes for the same facts: by domain, importance and id.

    Each is domain, kind, importance, id and text. What has no room is left out, the least important first.
    """
    size, kept = 0, []
    ordered = sorted(facts, key=lambda fact: (-fact[2], fact[3]))
    for domain, kind, importance, fact_id, text in ordered:
        line = f"- {text} ({kind}, {importance})\n"
        size += len(line.encode()) + len(domain.encode())
        if size > PAGE_SIZE_MAX_BYTES:
            break
        kept.append((domain, -importance, fact_id, line))
    parts = [f"# What is remembered{f' of {contact}' if contact else ''}\n"]
    last = None
    for domain, _, _, line in sorted(kept):
        if domain != last:
            parts.append(f"\n## {domain}\n\n")
            last = domain
        parts.append(line)
    if len(kept) < len(ordered):
        parts.append(f"\n{len(ordered) - len(kept)} less important facts have no room here.\n")
    return "".join(parts)


def normalised(text: str) -> str:
    """One text for what looks the same: compatibility forms, no case, single blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(text: str) -> bytes:
    """What tells two facts apart."""
    return hashlib.sha256(normalised(text).encode()).digest()


def parts(text: str) -> list[str]:
    """Parts of the words of a text, each once, in order."""
    found: dict[str, None] = {}
    word = ""
    wide = ""
    for character in normalised(text) + " ":
        is_wide = unicodedata.category(character) in _WIDE
        if wide and is_wide:
            found[wide + character] = None
        if is_wide:
            found[character] = None
        wide = character if is_wide else ""
        if character.isalnum() and not is_wide:
            word += character
        elif word:
            found.update(dict.fromkeys(_thirds(word)))
            word = ""
    return list(found)


def _thirds(word: str) -> list[str]:
    padded = f"_{word}_"
    return [padded[at : at + 3] for at in range(max(1, len(padded) - 2))]


def grams(text: str, most: int = GRAMS_MAX) -> list[int]:
    """The parts as numbers of four bytes, each once, in order, at most so many."""
    return list(dict.fromkeys(_number(part) for part in parts(text)))[:most]


def _number(part: str) -> int:
    return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=4).digest(), signed=True)


def lexical(text: str) -> Vector:
    """A vector without a model: texts that share parts are near one another. Of length one, or nought without parts."""
    values = [0.0] * DIMENSIONS
    for part in parts(text):
        number = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=4, person=b"vector").digest())
        values[number % DIMENSIONS] += 1.0 if number & 0x80000000 else -1.0
    length = math.sqrt(sum(value * value for value in values))
    return Vector(LEXICAL, [value / length for value in values] if length else values)
