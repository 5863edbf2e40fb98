"""Summing a session up, with a model where one answers in time, else by picking sentences. Whoever asks records it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog
from retinue_kit import deadlines, telemetry
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.tokens import estimate

from retinue_portability.domain import budget, extract, redaction
from retinue_portability.domain.content import START, Message, Summary, Taken
from retinue_portability.metrics import summaries
from retinue_portability.operations.building import Reading
from retinue_portability.operations.ports import Model, Session

MODEL_TIMEOUT_S = 20.0
"""For all that a model is asked for one summary: a person waits for the run behind it."""

FALLBACK_S = 2.0
"""What is left of the caller's time for picking sentences, should the model not answer."""

SUMMARIES_AT_ONCE = 16
"""Summaries that are made at once, each of which waits for a model with a conversation in memory. They have room of
their own, so that no switch of runtimes waits for a model."""

VERBATIM_SHARE = 0.5
"""Of the budget, for what stays as it was said."""

SUMMARY_SHARE = 0.25
"""Of the budget, for the summary: the rest is room to go on in."""

SUMMARY_TOKENS_MAX = 16_000
"""What the contract lets a summary have."""

STEPS_MAX = 8
"""Calls of the model for one summary. What it cannot read at once it is given in pieces, each with the summary of those
before."""

STEP_MESSAGES_MAX = 5000
STEP_TOKENS_MAX = 100_000
"""What is asked about at once, whatever the budget: less than a megabyte, on the wire of at most eight."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Job:
    """A summary to make."""

    tenant_id: str
    model: str
    tokens: int
    """What it may have."""
    step_tokens: int
    """What the model is given to read at once."""


class SummingUp:
    """SummarizeSession."""

    def __init__(self, reading: Reading, model: Model | None, clock: Clock, token_budget: int) -> None:
        self._reading = reading
        self._model = model
        self._clock = clock
        self._token_budget = token_budget
        self._room = asyncio.Semaphore(SUMMARIES_AT_ONCE)

    async def sum_up(self, session: Session, run_id: str, token_budget: int, model: str) -> Summary:
        """Sum up what was said before the newest turns, which stay as they were said.

        Raises CONTACT_NOT_FOUND; MODEL_CONTEXT_OVERFLOW where there is nothing left to sum up.
        """
        bound = min(token_budget or self._token_budget, budget.TOKENS_MAX)
        with telemetry.span("portability.summarize") as span:
            async with self._room:
                async with self._reading.room:
                    _, told = await self._reading.told(session, run_id)
                older = older_than_newest(told.messages, int(bound * VERBATIM_SHARE))
                if not older:
                    raise RetinueError(
                        Reason.MODEL_CONTEXT_OVERFLOW,
                        "The conversation is too long, and has no older part to sum up.",
                    )
                taken: Taken = Taken()
                older = await asyncio.to_thread(redaction.redact_messages, older, taken)
                former = redaction.redact_summary(told.summary, taken)
                tokens = max(1, min(int(bound * SUMMARY_SHARE), SUMMARY_TOKENS_MAX))
                job = Job(session.tenant_id, model, tokens, max(1, min(bound // 2, STEP_TOKENS_MAX)))
                made = await self._made(job, former, older)
            span.set_attribute("messages", len(older))
            span.set_attribute("method", made.method)
            summaries.labels(made.method).inc()
            return made

    async def _made(self, job: Job, former: Summary, older: Sequence[Message]) -> Summary:
        """Have the model sum up step by step for as long as it does; sentences are picked from what it has not read."""
        text, done = former.text, 0
        until = self._clock.monotonic() + max(0.0, deadlines.timeout_s(MODEL_TIMEOUT_S + FALLBACK_S) - FALLBACK_S)
        for step in steps(older, job.step_tokens)[:STEPS_MAX]:
            left_s = until - self._clock.monotonic()
            if self._model is None or left_s <= 0:
                break
            try:
                told = await self._model.summarise(job.tenant_id, job.model, text, step, job.tokens, left_s)
            except RetinueError as error:
                log.info("no summary by a model", reason=str(error.reason), detail=error.private)
                break
            if not told.strip():
                break
            text, done = budget.cut(told.strip(), job.tokens), done + len(step)
        by_model = done > 0 or (former.method == "model" and bool(former.text))
        through = max(former.through or START, older[-1].cursor)
        count = former.message_count + len(older)
        if done == len(older):
            return Summary(text, through, count, "model" if former.method in ("", "model") else "mixed")
        rest = job.tokens - min(estimate(text), job.tokens * 3 // 5)
        kept = budget.cut(text, job.tokens - rest)
        picked = await asyncio.to_thread(extract.summarise, older[done:], max(0, rest - 1))
        method = "mixed" if by_model or former.method == "mixed" else "extract"
        return Summary("\n".join(filter(None, (kept, picked))), through, count, method)


def older_than_newest(messages: Sequence[Message], room: int) -> tuple[Message, ...]:
    """Messages before the newest turns that fit. At least the older half of what was said, by its tokens: whoever asks
    has found that it is too long, whatever the budget says. Empty where nothing was said since the last summary.
    """
    costs = [estimate(message.text) for message in messages]
    room = min(room, sum(costs) // 2)
    start = len(messages)
    while start and costs[start - 1] <= room:
        room -= costs[start - 1]
        start -= 1
    while start < len(messages) and messages[start].role != "user":
        start += 1
    # A last message that is too long by itself stays all the same where it is a user's that waits for its answer.
    if start == len(messages) and len(messages) > 1 and messages[-1].role == "user":
        start -= 1
    return tuple(messages[:start])


def steps(messages: Sequence[Message], tokens: int) -> list[list[Message]]:
    """Messages in pieces of at most so many tokens; one that is longer by itself without its middle."""
    made: list[list[Message]] = []
    left = 0
    for message in messages:
        text = budget.cut(message.text, tokens)
        cost = estimate(text)
        if not made or cost > left or len(made[-1]) == STEP_MESSAGES_MAX:
            made.append([])
            left = tokens
        made[-1].append(message if text == message.text else replace(message, text=text))
        left -= cost
    return made
