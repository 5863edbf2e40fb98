"""Tokens of a text, about: the one estimate of the mesh, for whoever keeps a conversation within a model's window."""

ASCII_PER_TOKEN = 4
"""Characters of plain English that make a token: the usual rule of thumb."""

BYTES_PER_TOKEN = 3
"""Bytes in UTF-8 of what is not ASCII that make a token: one for each Chinese, Japanese or Korean character, two for
three letters of Cyrillic, Greek or Arabic. Today's tokenisers need a third less of it, so that it errs on the safe
side."""


def estimate(text: str) -> int:
    """Tokens that a text has, as far as we can tell; at least one if there is any. Adds up: of a whole no more than of
    its parts.
    """
    if text.isascii():
        return -(-len(text) // ASCII_PER_TOKEN)
    tally = Tally()
    tally.add(text)
    return tally.tokens


class Tally:
    """Counts a text that comes in pieces; its tokens are those of the whole."""

    def __init__(self) -> None:
        self._plain = 0
        self._rest_bytes = 0

    def add(self, text: str) -> None:
        """Take up the next piece."""
        if text.isascii():
            self._plain += len(text)
            return
        plain = len(text.encode("ascii", "ignore"))
        self._plain += plain
        self._rest_bytes += len(text.encode("utf-8", "surrogatepass")) - plain

    def add_plain(self, length: int) -> None:
        """Take up so many characters of a text that nobody kept, as if they were plain."""
        self._plain += length

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        scale = ASCII_PER_TOKEN * BYTES_PER_TOKEN
        return -(-(self._plain * BYTES_PER_TOKEN + self._rest_bytes * ASCII_PER_TOKEN) // scale)
