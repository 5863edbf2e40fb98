"""When a file was changed is what its owner says, and may be any number."""

import pytest
from retinue_sandbox.files import servicer
from retinue_sandbox.files.listing import Info


@pytest.mark.parametrize(
    ("instant_s", "told"),
    [
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (1 << 40, "9999-12-31T23:59:59Z"),
        (-1 << 40, "0001-01-01T00:00:00Z"),
    ],
)
def test_a_time_beyond_the_calendar_is_told_as_its_end(instant_s, told):
    shown = servicer._shown(Info("x", "file", 1, instant_s * 10**9))
    assert shown.modify_time.ToJsonString() == told
