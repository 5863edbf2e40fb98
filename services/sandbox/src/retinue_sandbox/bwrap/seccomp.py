"""The filters of system calls that boxes run under; `services/sandbox/seccomp/make.py` makes them."""

import platform
from pathlib import Path

FOLDER = Path(__file__).parent

LETTERS = ("a", "b")
"""A call has to pass both; see make.py."""

_NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def filters(machine: str = "") -> tuple[Path, ...]:
    """Name the files for a kind of machine, this one by default; none where there are none."""
    name = _NAMES.get((machine or platform.machine()).lower())
    return tuple(FOLDER / f"seccomp_{letter}.{name}.bpf" for letter in LETTERS) if name else ()
