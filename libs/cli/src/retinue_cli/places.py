"""Files on this machine that commands read and write; a dash stands for the pipe."""

import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

from retinue_cli.failures import EXIT_SETTINGS, CommandError

PIPE = "-"

NAME_LENGTH_MAX = 60
"""Characters of a file's name that the name of its unfinished part begins with: with them, at most 255 bytes."""


def write_new(place: Path, pieces: Iterable[bytes]) -> None:
    """Write a new file, which has its name only once it is whole. CommandError if it cannot be, or is there already."""
    try:
        _write(place, pieces)
    except FileExistsError:
        raise CommandError(f"{place} is there already; say another name.", EXIT_SETTINGS) from None
    except OSError as error:
        raise CommandError(f"{place} cannot be written: {error.strerror}.") from None


def _write(place: Path, pieces: Iterable[bytes]) -> None:
    if place.exists():
        raise FileExistsError
    part = place.with_name(f".{place.name[:NAME_LENGTH_MAX]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        try:
            os.link(part, place)  # unlike a renaming, takes nobody's place
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            part.rename(place)
    finally:
        part.unlink(missing_ok=True)


def read_bounded(file: str, size_max_bytes: int) -> bytes:
    """Read a file, or what comes by the pipe, whole. CommandError if it is larger."""
    try:
        if file == PIPE:
            data = sys.stdin.buffer.read(size_max_bytes + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(size_max_bytes + 1)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.", EXIT_SETTINGS) from None
    if len(data) > size_max_bytes:
        raise CommandError(f"{file} is larger than {size_max_bytes >> 20} MiB.", EXIT_SETTINGS)
    return data
