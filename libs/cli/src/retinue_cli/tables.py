"""What commands list: a table for people, JSON for programs."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer

WIDTH_MAX = 1000
"""Longer than any line that is told; whoever reads from a pipe gets a line a row."""

FACT_WIDTH = 13
"""Columns for a fact's name."""


def print_json(found: object) -> None:
    """Print a document."""
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def print_table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print lines under the names of their columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    laid = Table(*names, box=None, pad_edge=False)
    for line in lines:
        laid.add_row(*map(Text, line))
    Console(width=None if sys.stdout.isatty() else WIDTH_MAX, highlight=False).print(laid)


def print_facts(*facts: tuple[str, str]) -> None:
    """Print what is known of one thing, a line a fact; what is empty is passed over."""
    for name, fact in facts:
        if fact:
            typer.echo(f"{name + ':':<{FACT_WIDTH}}{fact}")


def time_of(message: Any, field: str) -> str:
    """Write an instant of a message; empty if it is not set."""
    return str(getattr(message, field).ToJsonString()) if message.HasField(field) else ""


def printable(name: str) -> str:
    """Write a name that somebody else has chosen so that it gives the terminal no orders."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)
