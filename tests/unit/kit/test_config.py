"""Settings come from the environment; the first wrong one is named in one line."""

import msgspec
import pytest
from retinue_kit import config


class Settings(msgspec.Struct, frozen=True):
    address: str
    count: int = 3
    ratio: float = 0.5
    on: bool = False


def test_what_is_set_is_read_and_the_rest_has_defaults():
    loaded = config.load(Settings, {"RETINUE_ADDRESS": "unix:/a", "RETINUE_COUNT": "7", "RETINUE_ON": "true", "X": "1"})
    assert loaded == Settings("unix:/a", 7, 0.5, True)


def test_an_empty_variable_counts_as_absent():
    assert config.load(Settings, {"RETINUE_ADDRESS": "unix:/a", "RETINUE_COUNT": ""}).count == 3


@pytest.mark.parametrize("environ", [{}, {"RETINUE_ADDRESS": ""}])
def test_a_missing_setting_is_named(environ):
    with pytest.raises(config.SettingError, match=r"^RETINUE_ADDRESS is not set\.$"):
        config.load(Settings, environ)


@pytest.mark.parametrize(("name", "value"), [("COUNT", "many"), ("COUNT", "1.5"), ("RATIO", "x"), ("ON", "perhaps")])
def test_a_wrong_setting_is_named_with_its_value(name, value):
    with pytest.raises(config.SettingError) as caught:
        config.load(Settings, {"RETINUE_ADDRESS": "a", f"RETINUE_{name}": value})
    assert str(caught.value).startswith(f"RETINUE_{name}={value!r} is not valid")
    assert "\n" not in str(caught.value)


def test_the_processs_own_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("RETINUE_ADDRESS", "unix:/b")
    assert config.load(Settings).address == "unix:/b"


@pytest.mark.parametrize("count", [1, 9])
def test_a_number_within_its_bounds_passes(count):
    config.check_bounds(Settings("a", count), {"count": (1, 9), "ratio": (0.0, 1.0)})


@pytest.mark.parametrize("count", [0, 10])
def test_a_number_out_of_its_bounds_is_named_with_them(count):
    with pytest.raises(config.SettingError, match=rf"^RETINUE_COUNT={count} must be a number from 1 to 9\.$"):
        config.check_bounds(Settings("a", count), {"count": (1, 9)})
