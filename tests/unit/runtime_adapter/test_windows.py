"""What a model's window is good for."""

import pytest
from retinue_kit.errors import Reason
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain import windows
from retinue_runtime_adapter.domain.models import Catalogue, Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.domain.windows import Size
from retinue_runtime_adapter.plain import metrics
from retinue_runtime_adapter.plain import windows as telling

MIN, WARN = 16_000, 32_000


def model(name, window):
    return Model(name, "p", name, window_tokens=window)


MODELS = Catalogue([model("large", 128_000), model("tiny", 8_000), model("low", 20_000), model("any", 0)], "low")


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (0, Size.UNKNOWN),
        (1, Size.TOO_SMALL),
        (15_999, Size.TOO_SMALL),
        (16_000, Size.SMALL),
        (31_999, Size.SMALL),
        (32_000, Size.ENOUGH),
    ],
)
def test_a_window_is_unknown_too_small_small_or_enough(window, expected):
    assert windows.size_of(window, min_tokens=MIN, warn_tokens=WARN) is expected


def test_bounds_of_0_refuse_and_warn_of_nothing():
    assert windows.size_of(1, min_tokens=0, warn_tokens=0) is Size.ENOUGH


def test_a_model_whose_window_is_too_small_is_refused_whatever_it_is_asked_with_both_numbers():
    with pytest.raises(Trouble) as refused:
        windows.check(model("tiny", 8_000), 1, min_tokens=MIN)
    assert refused.value.reason is Reason.MODEL_CONTEXT_OVERFLOW
    assert not refused.value.retryable
    assert "8000" in str(refused.value)
    assert "16000" in str(refused.value)


def test_what_is_longer_than_a_window_is_refused_and_what_fits_is_not():
    windows.check(model("low", 20_000), 20_000, min_tokens=MIN)
    windows.check(model("any", 0), 10**9, min_tokens=MIN)
    with pytest.raises(Trouble) as refused:
        windows.check(model("low", 20_000), 20_001, min_tokens=MIN)
    assert "20001" in str(refused.value)
    assert "20000" in str(refused.value)


def test_windows_are_told_in_the_order_of_the_names():
    assert MODELS.names() == ["low", "large", "tiny", "any"]
    assert MODELS.windows() == [20_000, 128_000, 8_000, 0]


def test_a_description_says_which_models_are_refused_and_nothing_where_none_is():
    assert windows.said_of(MODELS, MIN) == "; refused, for a window below 16000 tokens: tiny (reads 8000)"
    assert windows.said_of(MODELS, 0) == ""


def test_models_are_counted_by_their_windows_and_small_ones_are_logged(capfd):
    telling.warn(MODELS, Settings(address="", window_min_tokens=MIN, window_warn_tokens=WARN))
    counts = {size.value: metrics.windows.labels(size.value)._value.get() for size in Size}
    assert counts == {"unknown": 1, "too_small": 1, "small": 1, "enough": 1}
    said = "".join(capfd.readouterr())
    assert "tiny" in said
    assert "low" in said
    assert "large" not in said
