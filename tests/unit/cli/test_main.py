"""The command's entry says in one line what it refuses."""

import pytest
from retinue_cli import __main__ as command


@pytest.mark.parametrize("group", ["bundle", "memory", "policy", "runs", "schedules", "webhooks"])
def test_a_group_without_a_command_shows_its_help_and_no_empty_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    monkeypatch.setattr("sys.argv", ["retinue", group])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (2, "")
    assert f"Usage: retinue {group}" in said.out


def test_a_command_that_is_not_there_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["retinue", "runs", "foo"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: No such command 'foo'.\n")
