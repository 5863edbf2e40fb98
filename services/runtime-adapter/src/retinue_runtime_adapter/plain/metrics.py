"""Numbers about plain calls of models, and about the models themselves."""

from retinue_kit.metrics import counter, gauge

calls = counter("plain_model_calls", "Plain calls of models, by how they ended.", ["call", "outcome"])
"""Calls: summarize, embed. Outcomes: answered, or a trouble's reason in small letters."""

tokens = counter("plain_model_tokens", "Tokens of plain calls of models.", ["call", "direction"])
"""Directions: input, output. As the endpoint counted, else as estimated."""

windows = gauge("models", "Models that are set, by the size of their windows.", ["window"])
"""Windows: unknown, too_small (not called), small (warned of), enough."""


def count(call: str, input_tokens: int, output_tokens: int = 0) -> None:
    """Add what a call used."""
    tokens.labels(call, "input").inc(input_tokens)
    tokens.labels(call, "output").inc(output_tokens)
