"""What the offline model makes of a text in numbers: texts that share words are near to one another."""

import hashlib
import math
import re

DIMENSIONS = 64
"""Numbers of a vector: few words fall together in it, and a hundred vectors are small."""

_WORD = re.compile(r"[\u3400-\u9fff]|\w+")


def vector_of(text: str) -> list[float]:
    """Answer a vector of length 1, the same for the same text everywhere."""
    found = [0.0] * DIMENSIONS
    for word in _WORD.findall(text.casefold()) or [text]:
        digest = hashlib.blake2b(word.encode(errors="replace"), digest_size=2).digest()
        found[digest[0] % DIMENSIONS] += 1.0 if digest[1] & 1 else -1.0
    length = math.hypot(*found)
    return [number / length for number in found] if length else [1.0, *found[1:]]
