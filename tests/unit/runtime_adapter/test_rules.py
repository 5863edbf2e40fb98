"""The rules of lines, credentials, models, tokens and settings."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.config import Settings, read_models, read_runtimes
from retinue_runtime_adapter.domain.credentials import COOLDOWN_MAX_S, COOLDOWN_MIN_S, Credentials
from retinue_runtime_adapter.domain.fencing import Fences
from retinue_runtime_adapter.domain.models import Catalogue, CatalogueError, Model
from retinue_runtime_adapter.domain.sse import LINE_SIZE_MAX_BYTES, Lines, LineTooLongError

STREAM = b': comment\r\nevent: x\r\ndata: {"a":1}\r\n\r\ndata:b\nid: 3\ndata: \xc3\xbc\n\ndata: [DONE]'
EXPECTED = [b'{"a":1}', b"b", b"\xc3\xbc", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_chunking_of_a_stream_gives_the_same_lines(places: list[int]) -> None:
    places.sort()
    lines = Lines()
    found = []
    for start, end in zip([0, *places], [*places, len(STREAM)], strict=True):
        found += lines.feed(STREAM[start:end])
    assert found + lines.finish() == EXPECTED


def test_a_line_has_a_bound() -> None:
    lines = Lines()
    lines.feed(b"x" * LINE_SIZE_MAX_BYTES)
    with pytest.raises(LineTooLongError):
        lines.feed(b"x")


def test_one_key_is_kept_until_it_is_refused() -> None:
    keys = Credentials(["a", "b", "c"])
    assert [keys.pick(0), keys.pick(1)] == [0, 0]
    keys.refused(0, 1)
    assert [keys.pick(1), keys.pick(2)] == [1, 1]


def test_a_rest_doubles_up_to_its_maximum_and_ends_with_an_acceptance() -> None:
    keys = Credentials(["a"])
    now, rests = 0.0, []
    for _ in range(7):
        keys.refused(0, now)
        start = now
        while not keys.ready(now):
            now += 1
        rests.append(now - start)
    assert rests[:3] == [COOLDOWN_MIN_S, 2 * COOLDOWN_MIN_S, 4 * COOLDOWN_MIN_S]
    assert rests[-1] == COOLDOWN_MAX_S
    keys.accepted(0)
    keys.refused(0, now)
    assert keys.ready(now + COOLDOWN_MIN_S)


def test_refusals_at_once_count_as_one() -> None:
    keys = Credentials(["a"])
    for _ in range(5):
        keys.refused(0, 10.0)
    assert not keys.ready(10 + COOLDOWN_MIN_S - 1)
    assert keys.ready(10 + COOLDOWN_MIN_S)


def test_while_all_rest_the_one_that_is_ready_first_is_used() -> None:
    keys = Credentials(["a", "b"])
    keys.refused(0, 0.0)
    keys.refused(1, 5.0)
    assert not keys.ready(6)
    assert keys.pick(6) == 0


def test_no_key_is_a_key_too() -> None:
    assert Credentials([]).keys == ("",)


def model(name: str, fallback: str = "", aliases: tuple[str, ...] = ()) -> Model:
    return Model(name, "p", f"{name}-1", aliases, fallback)


def test_models_are_found_by_name_and_alias_and_else_the_default() -> None:
    catalogue = Catalogue([model("a", "b"), model("b", "c", ("bee",)), model("c")], "b")
    assert [found.name for found in catalogue.chain("a")] == ["a", "b", "c"]
    assert [found.name for found in catalogue.chain("bee")] == ["b", "c"]
    assert [found.name for found in catalogue.chain("")] == ["b", "c"]
    assert [found.name for found in catalogue.chain("unheard of")] == ["b", "c"]
    assert catalogue.names() == ["b", "a", "c"]
    assert catalogue.knows("bee")
    assert not catalogue.knows("unheard of")


@pytest.mark.parametrize(
    "models",
    [
        [],
        [model("b")],
        [model("a"), model("a")],
        [model("a"), model("b", aliases=("a",))],
        [model("a", "x")],
        [model("a", "a")],
        [model("a", "b"), model("b", "a")],
        [model("a", "b"), model("b", "c"), model("c", "b")],
    ],
)
def test_models_that_contradict_one_another_are_refused(models: list[Model]) -> None:
    with pytest.raises(CatalogueError):
        Catalogue(models, "a")


def test_no_stale_write_a_token_below_the_highest_is_refused() -> None:
    fences = Fences()
    for token in (3, 3, 7):
        fences.admit("ten_a", "ses_a", token)
    with pytest.raises(RetinueError) as refused:
        fences.admit("ten_a", "ses_a", 6)
    assert refused.value.reason is Reason.STALE_FENCING_TOKEN
    fences.admit("ten_b", "ses_a", 1)
    fences.admit("ten_a", "ses_b", 1)


def test_bounded_tokens_of_the_latest_sessions_are_remembered() -> None:
    fences = Fences(sessions_max=2)
    for session in ("a", "b", "a", "c"):
        fences.admit("ten_a", session, 5)
    with pytest.raises(RetinueError):
        fences.admit("ten_a", "a", 4)
    fences.admit("ten_a", "b", 1)


def settings(**fields: Any) -> Settings:
    return Settings(**{"address": "unix:/x", "model_base_url": "http://127.0.0.1:1/v1", **fields})


def test_the_variables_alone_make_one_model() -> None:
    models = read_models(settings(model="m", model_api_key="a, b"))
    assert models.catalogue.names() == ["m"]
    assert models.providers["environment"].api_keys == ["a", "b"]


@pytest.mark.parametrize(
    "url", ["localhost:1", "http://", "http://host:port/v1", "http://u:secret@host/v1", "http://[/v1"]
)
def test_an_address_that_no_model_can_have_is_refused(url: str) -> None:
    with pytest.raises(SettingError) as refused:
        read_models(settings(model_base_url=url))
    assert "secret" not in str(refused.value)


def write(path: Path, value: object) -> str:
    file = path / "models.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(file)


PROVIDER = {"p": {"base_url": "https://model.example/v1"}}
ONE = {"name": "a", "provider": "p", "model": "a-1"}


def test_the_file_adds_to_the_variables(tmp_path: Path) -> None:
    file = write(tmp_path, {"providers": PROVIDER, "models": [ONE]})
    assert read_models(settings(models_file=file, model="m")).catalogue.names() == ["m", "a"]
    assert read_models(settings(models_file=file, model_base_url="")).catalogue.names() == ["a"]
    chosen = write(tmp_path, {"providers": PROVIDER, "models": [ONE], "default": "a"})
    assert read_models(settings(models_file=chosen, model="m")).catalogue.names() == ["a", "m"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "not valid"),
        ({"provider": {}}, "provider"),
        ({"providers": {"p": {}}}, "base_url"),
        ({"providers": {"p": {"base_url": "ftp://x"}}, "models": [ONE]}, "providers.p.base_url"),
        ({"providers": {"p": {"base_url": "http://x", "api_keys": ["a\nb"]}}, "models": [ONE]}, "providers.p.api_keys"),
        ({"providers": PROVIDER, "models": [{**ONE, "provider": "q"}]}, "'q'"),
        ({"providers": PROVIDER, "models": [{**ONE, "fallback": "z"}]}, "'z'"),
        ({"providers": PROVIDER, "models": [ONE, ONE]}, "twice"),
        ({"providers": PROVIDER, "models": [ONE], "default": "z"}, "'z'"),
        ({"providers": PROVIDER}, "no model"),
    ],
)
def test_a_wrong_models_file_is_refused_by_name(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(SettingError) as refused:
        read_models(settings(models_file=write(tmp_path, value), model_base_url=""))
    assert "RETINUE_MODELS_FILE" in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_runtimes_are_read_once_each() -> None:
    assert read_runtimes(settings(runtimes=" light, light ,")) == ["light"]
    assert read_runtimes(settings(runtimes="openclaw, light")) == ["openclaw", "light"]
    for wrong in ("abacus", "light,abacus", " ,"):
        with pytest.raises(SettingError):
            read_runtimes(settings(runtimes=wrong))
