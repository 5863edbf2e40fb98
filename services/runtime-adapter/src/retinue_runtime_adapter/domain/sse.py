"""Lines of an event stream, cut out of bytes as they come."""

LINE_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes of one line. A token's chunk has some hundred; a server that sends more in one line is not speaking to us."""


class LineTooLongError(ValueError):
    """A line is longer than LINE_SIZE_MAX_BYTES."""


class Lines:
    """Finds the `data:` lines of an event stream. What a model sends has one such line per event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Read more bytes; answers the data of the lines that are whole by now. Raises LineTooLongError."""
        data = self._rest + chunk if self._rest else chunk
        lines = data.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_SIZE_MAX_BYTES:
            raise LineTooLongError
        # Comments, event names, ids and empty lines mean nothing here.
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def finish(self) -> list[bytes]:
        """Say that the stream has ended; a last line may lack its end."""
        return self.feed(b"\n") if self._rest else []
