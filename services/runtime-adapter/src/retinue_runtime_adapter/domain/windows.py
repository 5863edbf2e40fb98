"""What a model can read at once: enough for a conversation, little, or too little to be called at all."""

from collections import Counter
from enum import StrEnum

from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.models import Catalogue, Model
from retinue_runtime_adapter.domain.troubles import Trouble


class Size(StrEnum):
    """How large a window is for what runs need."""

    UNKNOWN = "unknown"
    TOO_SMALL = "too_small"
    """Persona, tools and a few turns do not fit: the model is not called."""
    SMALL = "small"
    """It will do, and conversations are summed up often."""
    ENOUGH = "enough"


def size_of(window_tokens: int, *, min_tokens: int, warn_tokens: int) -> Size:
    """Judge a window by the least that is called, and by what is warned of; 0 of either switches it off."""
    if not window_tokens:
        return Size.UNKNOWN
    if window_tokens < min_tokens:
        return Size.TOO_SMALL
    return Size.SMALL if window_tokens < warn_tokens else Size.ENOUGH


def sizes(catalogue: Catalogue, *, min_tokens: int, warn_tokens: int) -> Counter[Size]:
    """Count the models by the size of their windows."""
    found = (size_of(one.window_tokens, min_tokens=min_tokens, warn_tokens=warn_tokens) for one in catalogue.all())
    return Counter(found)


def check(model: Model, tokens: int, *, min_tokens: int) -> None:
    """See that a model can read so many tokens. Raises MODEL_CONTEXT_OVERFLOW; never where its window is unknown."""
    window = model.window_tokens
    if size_of(window, min_tokens=min_tokens, warn_tokens=0) is Size.TOO_SMALL:
        text = f"The model can read {window} tokens; a model for runs must read {min_tokens} at least."
        raise Trouble(Reason.MODEL_CONTEXT_OVERFLOW, text)
    if window and tokens > window:
        text = f"The conversation has about {tokens} tokens; the model can read {window}."
        raise Trouble(Reason.MODEL_CONTEXT_OVERFLOW, text)


def said_of(catalogue: Catalogue, min_tokens: int) -> str:
    """What operators read behind a runtime's description of models that are not called; "" where all are."""
    small = [
        f"{one.name} (reads {one.window_tokens})"
        for one in catalogue.all()
        if size_of(one.window_tokens, min_tokens=min_tokens, warn_tokens=0) is Size.TOO_SMALL
    ]
    return f"; refused, for a window below {min_tokens} tokens: {', '.join(small)}" if small else ""
