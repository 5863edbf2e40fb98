"""Settings of policy: what is taken, what is refused in one line."""

import pytest
from retinue_kit import config
from retinue_policy.config import Settings

NEEDED = {"RETINUE_ADDRESS": "unix:/a", "RETINUE_DIRECTORY_ADDRESS": "unix:/b", "RETINUE_REDIS_URL": "unix:///c"}


@pytest.mark.parametrize(
    ("text", "runtimes"),
    [("", ("light",)), ("light, openclaw", ("light", "openclaw")), ("openclaw,openclaw,", ("openclaw",))],
)
def test_runtimes_are_a_comma_list(text, runtimes):
    assert config.load(Settings, {**NEEDED, "RETINUE_RUNTIMES": text}).runtimes_on == runtimes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETINUE_RUNTIMES", "hermes"),
        ("RETINUE_RUNTIMES", ","),
        ("RETINUE_ATTEMPT_COUNT", "0"),
        ("RETINUE_ATTEMPT_COUNT", "4"),
        ("RETINUE_CELL_PLANS", "pro,gold"),
        ("RETINUE_BEFORE_TOOL_CALL_URL", "ftp://check.example.com/"),
        ("RETINUE_BEFORE_TOOL_CALL_URL", "https://[::1"),
        ("RETINUE_BEFORE_TOOL_CALL_URL", "check"),
        ("RETINUE_BEFORE_TOOL_CALL_TIMEOUT_S", "5"),
        ("RETINUE_BEFORE_TOOL_CALL_TIMEOUT_S", "0"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(name, value):
    with pytest.raises(config.SettingError) as caught:
        config.load(Settings, {**NEEDED, name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "plans"),
    [("", {"pro", "team", "enterprise"}), ("team, free", {"team", "free"}), (",", set())],
)
def test_plans_with_cells_are_a_comma_list(text, plans):
    assert config.load(Settings, {**NEEDED, "RETINUE_CELL_PLANS": text}).plans_with_cells == plans
