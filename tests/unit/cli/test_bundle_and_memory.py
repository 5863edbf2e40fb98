"""What `retinue bundle` and `retinue memory` show, and what they refuse before anybody is asked."""

from typing import Any

import pytest
from retinue.router.v1.memory_service_pb2 import Fact
from retinue_cli.commands import bundle, memory
from retinue_cli.failures import CommandError
from typer.testing import CliRunner


def test_a_fact_gives_the_terminal_no_orders_and_takes_one_line() -> None:
    fact = Fact(fact_id="fact_1", domain="work", kind="note", importance=7, text="a\x1b[2J\n  b\u202e")
    assert memory.line(fact) == ("fact_1", "everyone", "7", "work", "note", "", "a\ufffd[2J b\ufffd")
    assert memory.line(Fact(contact="ada"))[1] == "ada"


@pytest.mark.parametrize(
    ("arguments", "words"), [(["ada", "x", "--kind", "wish"], "none of preference"), (["ada", " \n"], "remembered")]
)
def test_a_fact_that_says_nothing_or_is_of_no_kind_is_refused(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(memory.app, ["add", *arguments])
    assert isinstance(done.exception, CommandError)
    assert words in str(done.exception)


def test_bounded_what_is_larger_than_any_bundle_is_refused(tmp_path: Any) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(bundle.SIZE_MAX_BYTES + 1)
    for path, words in ((large, "larger than 3 MiB"), (tmp_path / "none", "cannot be read")):
        done = CliRunner().invoke(bundle.app, ["import", "ada", str(path)])
        assert isinstance(done.exception, CommandError)
        assert words in str(done.exception)
