"""Tells operators of models that can read little: once, as the process starts."""

import structlog

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain.models import Catalogue
from retinue_runtime_adapter.domain.windows import Size, size_of, sizes
from retinue_runtime_adapter.plain import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def warn(catalogue: Catalogue, settings: Settings) -> None:
    """Write a line for each model with a small window, and count the models by theirs."""
    least, low = settings.window_min_tokens, settings.window_warn_tokens
    for size in Size:
        metrics.windows.labels(size.value).set(sizes(catalogue, min_tokens=least, warn_tokens=low)[size])
    for model in catalogue.all():
        size = size_of(model.window_tokens, min_tokens=least, warn_tokens=low)
        if size is Size.TOO_SMALL:
            log.error("a model's window is too small", model=model.name, window_tokens=model.window_tokens, least=least)
        elif size is Size.SMALL:
            log.warning("a model's window is small", model=model.name, window_tokens=model.window_tokens, low=low)
