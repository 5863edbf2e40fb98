"""What a person is asked about: one line that hides nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_policy.domain.tools.summaries import SUMMARY_LENGTH_MAX, summary_of


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("exec", {"command": "rm -rf build"}, "Run: rm -rf build"),
        ("exec", {"command": "make", "cwd": "lib"}, "Run (in lib): make"),
        ("exec", {"command": "sh", "stdin": "rm -rf build"}, "Run: sh, with the input: rm -rf build"),
        ("edit", {"path": "a", "old_text": "b", "new_text": "c", "all": True}, "Edit a everywhere: b → c"),
        ("exec", {}, "Run: ?"),
        ("python", {"code": "a = 1\nprint(a)"}, "Run Python: a = 1\\nprint(a)"),
        ("read", {"path": "a"}, "Read a"),
        ("list", {}, "List the workspace"),
        ("list", {"path": "src"}, "List src"),
        ("write", {"path": "a", "content": "x"}, "Write a: x"),
        ("edit", {"path": "a", "old_text": "x", "new_text": "y"}, "Edit a: x → y"),
        ("delete", {"path": "a"}, "Delete a"),
        ("delete", {"path": "a", "recursive": True}, "Delete a, with everything in it"),
        ("memory_note", {"title": "Tea", "text": "green"}, "Note Tea: green"),
        ("memory_note", {"facts": [{"text": "Rows."}, 1], "text": "Sings."}, "Remember: Rows. | ? | Sings."),
        ("memory_search", {"query": "cat"}, "Look in memory for cat"),
        ("schedule_task", {"cron": "0 7 * * *", "text": "hi"}, "Schedule 0 7 * * *: hi"),
        ("schedule_task", {"cron": "0 7 * * *", "time_zone": "UTC", "text": "hi"}, "Schedule 0 7 * * * (UTC): hi"),
        ("mcp__crm__get", {"id": 5.0}, 'Call get of crm with {"id":5}'),
        ("strange", {}, "Call strange with {}"),
    ],
)
def test_a_call_is_said_in_one_line(tool, arguments, said):
    assert summary_of(tool, arguments) == said


TEXT = st.text(max_size=2000) | st.sampled_from(["\u202e" * 700, "\n" * 1000, "\U000e0041" * 600])


@given(st.sampled_from(["exec", "python", "write", "delete", "mcp__a__b", "x\ny"]), TEXT, TEXT)
def test_bounded_a_summary_is_one_printable_line(tool, first, second):
    said = summary_of(tool, {"command": first, "code": first, "path": first, "content": second, "cwd": second})
    assert said.isprintable()
    assert len(said) <= SUMMARY_LENGTH_MAX


def test_the_end_of_a_long_command_is_told_with_how_much_there_is():
    said = summary_of("exec", {"command": "true " + "#" * 5000 + "; rm -rf /workspace"})
    assert said.startswith("Run: true ##")
    assert said.endswith("; rm -rf /workspace")
    assert "(5,029 characters)" in said


def test_what_turns_text_around_is_made_visible():
    assert summary_of("delete", {"path": "a\u202egpj.exe"}) == "Delete a\\u202egpj.exe"
