"""How a command says that it cannot: one line, and an exit code."""

EXIT_FAILED = 1
EXIT_SETTINGS = 2
"""A missing or wrong setting, a port that is taken: nothing was begun."""


class CommandError(Exception):
    """Ends the command; the text is one line for a person."""

    def __init__(self, text: str, code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.code = code
