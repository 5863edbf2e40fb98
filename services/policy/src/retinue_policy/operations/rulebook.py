"""The rules in force. Newer ones take their place once they were found good; till then the old ones hold."""

import asyncio
from typing import Protocol

import structlog
from retinue_kit.metrics import counter, gauge

from retinue_policy.operations.tools import Rules

LOOK_S = 1.0
"""How often files are read again: a change takes effect within this."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_read = counter("tool_rules_read", "Rules for tools that were read anew, by what became of them.", ["outcome"])
_refused = gauge("tool_rules_refused", "Whether the files hold rules for tools that were refused.")


class BadRulesError(Exception):
    """Rules that cannot be followed; the text is one line that says where and why."""


class Source(Protocol):
    """Where rules are written."""

    def read(self) -> dict[str, str]:
        """Read files by name. Raises BadRulesError."""
        ...

    def load(self, texts: dict[str, str]) -> Rules:
        """Make rules of files. Raises BadRulesError."""
        ...


class Rulebook:
    """Holds the rules in force. Raises BadRulesError if there are none to begin with."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen: dict[str, str] | None = source.read()
        self._rules = source.load(self._seen)
        self._refusal = ""
        _refused.set(0)
        log.info("rules for tools", rules=self._rules.name)

    @property
    def rules(self) -> Rules:
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
        _refused.set(0)
        _read.labels("taken").inc()
        log.info("rules for tools", rules=rules.name)

    def _refuse(self, refusal: str) -> None:
        if refusal == self._refusal:
            return
        self._refusal = refusal
        _refused.set(1)
        _read.labels("refused").inc()
        log.error("rules for tools refused; the old ones hold", rules=self._rules.name, detail=refusal)
