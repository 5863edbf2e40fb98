"""Which model is called, how often, and which one instead: one policy for every runtime whose models we reach."""

import asyncio
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import aiohttp
import structlog
from opentelemetry.util.types import AttributeValue
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason

from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.domain import windows
from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.endpoint import COMPLETIONS, C, Opener, Provider, begin

TRIES_MAX = 3
"""Calls of one model within an attempt: the first, and two more for a hiccup or a refused credential. What lasts longer
is for the next model, and then for the run's next attempt."""

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 0.4
"""Pause before a model is called again, halved at random so that many do not come back at once: together less than a
second, since a person is waiting."""

RUN_TIME_S = 600.0
"""Time for an attempt whose request names none."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Question(Protocol):
    """What is asked, of whichever model."""

    def body(self, model: str) -> bytes:
        """Write the request's body for a model, as its provider calls it."""
        ...

    def tokens(self) -> int:
        """Count what a model has to read, about."""
        ...

    def joined(self) -> "Question | None":
        """Ask the same without two messages of one role in a row; None if there are none."""
        ...


class Caller:
    """Models by name, with fallbacks and credentials."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        http: aiohttp.ClientSession,
        clock: Clock,
        path: str = COMPLETIONS,
    ) -> None:
        """`path` is what is called, behind the endpoints' own addresses."""
        self.catalogue = models.catalogue
        self.providers = {name: Provider(name, entry, path) for name, entry in models.providers.items()}
        self._settings = settings
        self._http = http
        self._clock = clock

    async def first_words(
        self,
        opener: Opener[C],
        name: str,
        question: Question,
        attempt: Attempt,
        *,
        run_id: str,
        trying: Callable[[Model], None],
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> C:
        """Call the model, or those that stand in for it, until one speaks. Raises the last one's Trouble.

        `trying` is told each model before it is called.
        """
        if name and not self.catalogue.knows(name):
            log.warning("unknown model, the default is used", model=name, run_id=run_id)
        trouble: Trouble | None = None
        for model in self.catalogue.chain(name):
            trying(model)
            try:
                return await self._call(opener, model, question, attempt, attributes or {})
            except Trouble as error:
                log.warning("model failed", model=model.name, reason=str(error.reason), run_id=run_id)
                if error.reason in (Reason.RUN_TIMEOUT, Reason.RUN_TERMINAL):
                    raise
                trouble = error
        assert trouble is not None
        raise trouble

    async def _call(
        self,
        opener: Opener[C],
        model: Model,
        question: Question,
        attempt: Attempt,
        attributes: Mapping[str, AttributeValue],
    ) -> C:
        """Call one model, again within bounds where that can help. Raises Trouble."""
        provider = self.providers[model.provider]
        if model.window_tokens:
            windows.check(model, question.tokens(), min_tokens=self._settings.window_min_tokens)
        tries = 0
        while True:
            body = question.body(model.model)
            tries += 1
            try:
                return await begin(
                    opener, self._http, self._settings, self._clock, provider, model, attempt, body, attributes
                )
            except Trouble as error:
                if tries == TRIES_MAX:
                    raise
                if error.of_credential and provider.credentials.ready(self._clock.monotonic()):
                    continue
                joined = question.joined() if error.reason is Reason.MODEL_ROLE_ORDER else None
                if joined is not None:
                    question = joined
                    continue
                if not error.again:
                    raise
                backoff_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** (tries - 1)) * random.uniform(0.5, 1)  # noqa: S311
                pause_s = max(backoff_s, error.error.retry_after_s or 0)
            await attempt.wait(partial(asyncio.sleep, pause_s), pause_s + RUN_TIME_S)
