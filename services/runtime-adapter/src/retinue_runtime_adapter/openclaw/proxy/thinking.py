"""What a model thinks at the beginning of what it says, between tags."""

from enum import IntEnum

_OPEN = ("<think>", "<thinking>")
_CLOSE = ("</think>", "</thinking>")


class _Mode(IntEnum):
    LEAD = 0
    INSIDE = 1
    AFTER = 2
    PAST = 3


class Thinking:
    """Takes the leading block of thoughts out of an answer, however it is cut into chunks; the rest is not touched.

    Gateways drop such blocks wherever they stand; at the beginning is where models put them. White space around the
    block belongs to neither.
    """

    def __init__(self) -> None:
        self._mode = _Mode.LEAD
        self._held = ""
        self._found = False

    @property
    def past(self) -> bool:
        """Whether all that comes now is said."""
        return self._mode is _Mode.PAST

    @property
    def found(self) -> bool:
        """Whether there are thoughts."""
        return self._found

    @property
    def unsure(self) -> bool:
        """Whether what was read may be the beginning of thoughts or of words."""
        return self._mode is _Mode.LEAD and bool(self._held)

    def feed(self, text: str, *, ending: bool = False) -> tuple[str, str]:
        """Read more of the answer; answers what is thought and what is said, as far as that is certain."""
        self._held += text
        thought = ""
        if self._mode is _Mode.LEAD:
            self._enter(ending=ending)
        if self._mode is _Mode.INSIDE:
            thought = self._think(ending=ending)
        if self._mode is _Mode.AFTER:
            self._held = self._held.lstrip()
            if self._held:
                self._mode = _Mode.PAST
        said = ""
        if self._mode is _Mode.PAST:
            said, self._held = self._held, ""
        return thought, said

    def _enter(self, *, ending: bool) -> None:
        lead = self._held.lstrip()
        for tag in _OPEN:
            if lead.startswith(tag):
                self._mode, self._held, self._found = _Mode.INSIDE, lead[len(tag) :], True
                return
        if ending or not any(tag.startswith(lead) for tag in _OPEN):
            self._mode = _Mode.PAST

    def _think(self, *, ending: bool) -> str:
        places = [(self._held.find(tag), tag) for tag in _CLOSE if tag in self._held]
        if places:
            place, tag = min(places)
            thought, self._held = self._held[:place], self._held[place + len(tag) :]
            self._mode = _Mode.AFTER
            return thought
        cut = len(self._held) - (0 if ending else _beginning(self._held))
        thought, self._held = self._held[:cut], self._held[cut:]
        return thought


def _beginning(text: str) -> int:
    """How many characters at the end could be the beginning of a closing tag."""
    start = text.rfind("<")
    return len(text) - start if start >= 0 and any(tag.startswith(text[start:]) for tag in _CLOSE) else 0
