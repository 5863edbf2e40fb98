"""Texts to vectors, by an endpoint that speaks OpenAI's embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import msgspec
from opentelemetry.trace import Span
from retinue_kit import deadlines
from retinue_kit.clock import Clock
from retinue_kit.config import SettingError
from retinue_kit.tokens import estimate

from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.domain.models import Catalogue, Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.calling import Caller
from retinue_runtime_adapter.light.endpoint import Call
from retinue_runtime_adapter.light.wire import Usage, counted
from retinue_runtime_adapter.plain import metrics

CALL = "embed"
EMBEDDINGS = "/embeddings"

TIME_S = 30.0
"""Seconds for a hundred short texts, where whoever asks waits as long."""

DIMENSIONS_MAX = 4096
"""Numbers of a vector, as the contract bounds them."""

ANSWER_SIZE_MAX_BYTES = 16 * 1024 * 1024
"""Bytes of an answer: a hundred of the longest vectors, written out, have ten million."""

NUMBER_MAX = 1e30
"""What a vector's numbers stay below, so that each is one of 32 bits; they are about 1."""

Vector = list[float]


class _Entry(msgspec.Struct):
    embedding: Vector
    index: int = 0


class _Answer(msgspec.Struct):
    data: list[_Entry] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Texts:
    """What is asked: a question as `calling.Caller` asks them."""

    texts: Sequence[str]

    def body(self, model: str) -> bytes:
        return _encode({"model": model, "input": list(self.texts)})

    def tokens(self) -> int:
        return sum(map(estimate, self.texts))

    def joined(self) -> None:
        return None


class Vectors(Call[Vector]):
    """A call whose answer is a vector for each text."""

    content_type = "application/json"

    def __init__(self, count: int, attempt: Attempt, settings: Settings, span: Span, keys: Sequence[str]) -> None:
        super().__init__(attempt, settings, span, keys)
        self._count = count

    async def read(self) -> list[Vector]:
        """Read the vectors, in the order of the texts. Raises Trouble."""
        body = await self.whole_body(ANSWER_SIZE_MAX_BYTES)
        try:
            answer = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise troubles.invalid("The model's endpoint sent an answer that makes no sense.") from None
        if answer.error is not None:
            raise troubles.of_stream(body, self._keys)
        vectors = [entry.embedding for entry in sorted(answer.data, key=lambda entry: entry.index)]
        lengths = {len(vector) for vector in vectors}
        if len(vectors) != self._count or len(lengths) != 1 or not 1 <= max(lengths) <= DIMENSIONS_MAX:
            raise troubles.invalid("The model's endpoint sent other vectors than were asked for.")
        if not all(abs(number) < NUMBER_MAX for vector in vectors for number in vector):
            raise troubles.invalid("The model's endpoint sent a vector with something that is no number.")
        self.over, self.usage = True, answer.usage
        return vectors


class Embedder:
    """The verb of Embed."""

    def __init__(self, settings: Settings, models: Models, http: aiohttp.ClientSession, clock: Clock) -> None:
        self._caller = Caller(settings, models, http, clock, EMBEDDINGS)

    async def embed(self, texts: Sequence[str]) -> tuple[list[Vector], str]:
        """Answer a vector for each text, and the name of the model. Raises RetinueError with the model's reason."""
        attempt, asked = Attempt(deadlines.timeout_s(TIME_S)), Texts(texts)
        name = self._caller.catalogue.default.name
        opener: Any = partial(Vectors, len(texts))
        try:
            call: Vectors = await self._caller.first_words(opener, name, asked, attempt, run_id="", trying=_nothing)
        except Trouble as trouble:
            metrics.calls.labels(CALL, str(trouble.reason).lower()).inc()
            raise trouble.error from None
        read = counted(call.usage.prompt_tokens if call.usage else asked.tokens())
        call.count(read, 0)
        call.close()
        metrics.calls.labels(CALL, "answered").inc()
        metrics.count(CALL, read)
        return call.first, name


def _nothing(_model: Model) -> None:
    """There is one model, and nobody to be told of it."""


def read_models(settings: Settings, models: Models) -> Models | None:
    """The model that makes vectors, as a catalogue of its own; None where none is set. Raises SettingError."""
    name = settings.embedding_model
    if not name:
        return None
    provider = settings.embedding_provider or models.catalogue.default.provider
    entry = models.providers.get(provider)
    if entry is None:
        raise SettingError(f"RETINUE_EMBEDDING_PROVIDER={provider!r} is none of {', '.join(sorted(models.providers))}.")
    return Models({provider: entry}, Catalogue([Model(name, provider, name)], name))
