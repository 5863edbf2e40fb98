"""Sums conversations up with the models that runs have, in their order, with their credentials."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import aiohttp
from retinue_kit import deadlines
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason
from retinue_kit.tokens import Tally, estimate

from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.shaping import Shaper, Text
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.calling import Caller
from retinue_runtime_adapter.light.wire import counted
from retinue_runtime_adapter.light.words import Asked, Said, Words
from retinue_runtime_adapter.plain import metrics, prompt

CALL = "summarize"

TIME_S = 60.0
"""Seconds for a summary, where whoever asks waits as long."""

SIZE_MAX_BYTES = 256 * 1024
"""Bytes that a model may think and say for one summary; the longest has about 64 KiB."""

HALVINGS_MAX = 3
"""How often what does not fit a model's window is halved: into eight pieces, each summed up with the summary of those
before."""

CUT_SHARE_MIN = 0.5
"""How much of what fits is kept at least, where a summary that is too long is cut at the end of a sentence."""

_ENDS = "\n.!?。！？;；"

Line = tuple[str, str]
"""A role and what it said."""


@dataclass(slots=True)
class _Job:
    model: str
    token_count: int
    attempt: Attempt
    answered_by: str = ""

    def trying(self, model: Model) -> None:
        self.answered_by = model.name


class Summarizer:
    """The verb of Summarize."""

    def __init__(self, settings: Settings, models: Models, http: aiohttp.ClientSession, clock: Clock) -> None:
        self._caller = Caller(settings, models, http, clock)

    async def sum_up(self, model: str, former: str, lines: Sequence[Line], token_count: int) -> tuple[str, str]:
        """Answer a summary of at most so many tokens, and the name of the model that wrote it.

        Raises RetinueError with the model's reason; RUN_TIMEOUT once the caller's time is over.
        """
        job = _Job(model, token_count, Attempt(deadlines.timeout_s(TIME_S)))
        try:
            text = await self._sum_up(job, former, lines, HALVINGS_MAX)
        except Trouble as trouble:
            metrics.calls.labels(CALL, str(trouble.reason).lower()).inc()
            raise trouble.error from None
        metrics.calls.labels(CALL, "answered").inc()
        return text, job.answered_by

    async def _sum_up(self, job: _Job, former: str, lines: Sequence[Line], halvings: int) -> str:
        try:
            return await self._ask(job, former, lines)
        except Trouble as trouble:
            if trouble.reason is not Reason.MODEL_CONTEXT_OVERFLOW or not halvings or len(lines) < 2:
                raise
        half = len(lines) // 2
        former = await self._sum_up(job, former, lines[:half], halvings - 1)
        return await self._sum_up(job, former, lines[half:], halvings - 1)

    async def _ask(self, job: _Job, former: str, lines: Sequence[Line]) -> str:
        messages = prompt.summary(former, lines, job.token_count)
        speak = partial(self._caller.first_words, Words, job.model, attempt=job.attempt, run_id="", trying=job.trying)
        try:
            call = await speak(question=Asked(messages, {"temperature": 0}))
        except Trouble as trouble:
            if trouble.reason is not Reason.MODEL_REQUEST_REFUSED:
                raise
            call = await speak(question=Asked(messages, {}))  # some models take no temperature
        failed: Trouble | None = None
        heard = _Heard(job.token_count)
        try:
            said = call.first
            while heard.take(said) and not call.over:
                said = await call.read()
            text = heard.whole()
        except Trouble as trouble:
            failed = trouble
            raise
        finally:
            usage = call.usage
            read = usage.prompt_tokens if usage else Asked(messages, {}).tokens()
            written = usage.completion_tokens if usage else heard.all.tokens
            metrics.count(CALL, counted(read), counted(written))
            call.count(counted(read), counted(written))
            call.close(failed)
        return text


class _Heard:
    """What a model has said of a summary so far, without what it thought."""

    def __init__(self, token_count: int) -> None:
        self.all = Tally()
        """All that it said and thought."""
        self._token_count = token_count
        self._size_bytes = 0
        self._shaper = Shaper()
        self._texts: list[str] = []
        self._tally = Tally()

    def take(self, said: list[Said]) -> bool:
        """Take up more; answers whether there is room for more still. Raises MODEL_RESPONSE_INVALID."""
        for part in said:
            self.all.add(part.text)
            self._size_bytes += len(part.text.encode(errors="replace"))
            if not part.reasoning:
                self._add([piece.text for piece in self._shaper.feed(part.text) if isinstance(piece, Text)])
        if self._size_bytes > SIZE_MAX_BYTES:
            raise troubles.invalid("The model goes on without end about what it should sum up.")
        return self._tally.tokens <= self._token_count

    def _add(self, texts: list[str]) -> None:
        for text in texts:
            self._texts.append(text)
            self._tally.add(text)

    def whole(self) -> str:
        """The summary. Raises MODEL_RESPONSE_INVALID if there is none."""
        self._add([piece.text for piece in self._shaper.finish() if isinstance(piece, Text)])
        text = within("".join(self._texts).strip(), self._token_count)
        if not text:
            raise troubles.invalid("The model did not say anything of what it should sum up.")
        return text


def within(text: str, token_count: int) -> str:
    """As much of a text's beginning as has so many tokens, to the end of a sentence where one is not too far."""
    if estimate(text) <= token_count:
        return text
    low, high = 0, len(text)
    while low < high:  # halves what is left
        middle = (low + high + 1) // 2
        low, high = (middle, high) if estimate(text[:middle]) <= token_count else (low, middle - 1)
    end = max(text.rfind(mark, 0, low) for mark in _ENDS) + 1
    return text[: end if end >= low * CUT_SHARE_MIN else low].rstrip()
