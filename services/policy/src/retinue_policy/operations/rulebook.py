"""The rules in force. Newer ones take their place once they were found good; till then the old ones hold."""

import asyncio
from typing import Generic, Protocol, TypeVar

import structlog
from retinue_kit.metrics import counter, gauge

LOOK_S = 1.0
"""How often files are read again: a change takes effect within this."""

TOOLS = "tools"
RUNTIMES = "runtimes"

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_METRICS = {
    TOOLS: (
        counter("tool_rules_read", "Rules for tools that were read anew, by what became of them.", ["outcome"]),
        gauge("tool_rules_refused", "Whether the files hold rules for tools that were refused."),
    ),
    RUNTIMES: (
        counter("runtime_rules_read", "Rules for runtimes that were read anew, by what became of them.", ["outcome"]),
        gauge("runtime_rules_refused", "Whether the file holds rules for runtimes that were refused."),
    ),
}


class BadRulesError(Exception):
    """Rules that cannot be followed; the text is one line that says where and why."""


class Named(Protocol):
    """Rules of any kind."""

    @property
    def name(self) -> str:
        """Names them by what they say."""
        ...


R = TypeVar("R", bound=Named)
R_co = TypeVar("R_co", bound=Named, covariant=True)


class Source(Protocol[R_co]):
    """Where rules are written."""

    def read(self) -> dict[str, str]:
        """Read files by name. Raises BadRulesError."""
        ...

    def load(self, texts: dict[str, str]) -> R_co:
        """Make rules of files. Raises BadRulesError."""
        ...


class Rulebook(Generic[R]):
    """Holds the rules in force, for tools or for runtimes. Raises BadRulesError if there are none to begin with."""

    def __init__(self, source: Source[R], about: str = TOOLS) -> None:
        self._source = source
        self._read, self._refused = _METRICS[about]
        self._event = f"rules for {about}"
        self._seen: dict[str, str] | None = source.read()
        self._rules = source.load(self._seen)
        self._refusal = ""
        self._refused.set(0)
        log.info(self._event, rules=self._rules.name)

    @property
    def rules(self) -> R:
        """The rules in force."""
        return self._rules

    @property
    def told(self) -> str:
        """Name the rules in force, and say why newer ones were refused, if they were."""
        refused = f"; newer files are refused: {self._refusal}" if self._refusal else ""
        return self._rules.name + refused

    async def look_for_ever(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look once, off the loop's thread: files may be slow."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        try:
            texts = self._source.read()
        except BadRulesError as error:
            self._seen = None
            self._refuse(str(error))
            return
        if texts == self._seen:
            return
        self._seen = texts
        try:
            rules = self._source.load(texts)
        except BadRulesError as error:
            self._refuse(str(error))
            return
        self._rules, self._refusal = rules, ""
        self._refused.set(0)
        self._read.labels("taken").inc()
        log.info(self._event, rules=rules.name)

    def _refuse(self, refusal: str) -> None:
        if refusal == self._refusal:
            return
        self._refusal = refusal
        self._refused.set(1)
        self._read.labels("refused").inc()
        log.error(f"{self._event} refused; the old ones hold", rules=self._rules.name, detail=refusal)
