"""Ids: a kind's prefix and 26 characters that sort by time."""

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: no i, l, o, u."""

_RANDOM_BITS = 80


def encode_base32(number: int, length: int) -> str:
    """Write the lowest 5 * `length` bits of a number, most significant first."""
    return "".join(_ALPHABET[(number >> (5 * i)) & 31] for i in range(length - 1, -1, -1))


def new_id(prefix: str) -> str:
    """Make an id such as `run_01k…`: 48 bits of milliseconds, then 80 random bits (the layout of a ULID)."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds << _RANDOM_BITS) | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
    return f"{prefix}_{encode_base32(number, 26)}"


def first_id(prefix: str, time_s: float) -> str:
    """The lowest id that is made at a time, in seconds since 1970; times before that count as it."""
    return f"{prefix}_{encode_base32((max(0, int(time_s * 1000)) << _RANDOM_BITS), 26)}"
