"""Draws an answer while it grows, and takes back what its run takes back."""

import shutil
import sys
from typing import IO

from rich.cells import cell_len

ERASE_DOWN = "\x1b[J"


class Answer:
    """The place on a terminal where one answer is written. Nothing else may write until `close`."""

    def __init__(self, out: IO[str] | None = None, size: tuple[int, int] | None = None) -> None:
        self._out = out or sys.stdout
        self._size = size
        self._shown = ""

    def show(self, text: str) -> None:
        """Make the screen hold this text: only what is new is written, as long as nothing was taken back."""
        if text.startswith(self._shown):
            self._out.write(text[len(self._shown) :])
        else:
            columns, lines = self._size or shutil.get_terminal_size()
            up = rows(self._shown, columns) - 1
            if up < lines:
                self._out.write("\r" + (f"\x1b[{up}A" if up else "") + ERASE_DOWN + text)
            else:  # its beginning has left the screen, where nothing can be taken back
                self._out.write(f"\n(once more, from the beginning)\n{text}")
        self._shown = text
        self._out.flush()

    def close(self) -> None:
        """End the answer's last line."""
        if self._shown and not self._shown.endswith("\n"):
            self._out.write("\n")
        self._out.flush()


def rows(text: str, columns: int) -> int:
    """Count the rows that a text takes on a terminal of this width."""
    return sum(max(1, -(-cell_len(line) // columns)) for line in text.split("\n"))
