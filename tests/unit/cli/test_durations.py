"""Times to live as people type them."""

import pytest
from retinue_cli.durations import parse_ttl
from retinue_cli.failures import CommandError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 2_592_000),
        ("12h", 43_200),
        ("90m", 5_400),
        ("45s", 45),
        ("3600", 3_600),
        ("2w", 1_209_600),
        (" 1 d ", 86_400),
    ],
)
def test_a_time_is_read_with_its_unit(text: str, seconds: int) -> None:
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0d", "-1h", "1.5h", "367d", "99999999999", "tomorrow", "1h30m", "30D"])
def test_what_is_not_a_time_is_refused_as_a_wrong_setting(text: str) -> None:
    with pytest.raises(CommandError, match="--ttl") as refused:
        parse_ttl(text)
    assert refused.value.code == 2
