"""What a model reads of a conversation that OpenClaw leads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_runtime_adapter.openclaw.prompt import shape
from retinue_runtime_adapter.openclaw.words import MARK, enclose

TIME = "[Sat 2026-11-21 17:10 UTC] "
HOST = "\n\nRuntime: agent=t1 | session=agent:t1:x | host=vm | os=Linux | node=v24 | model=p/default"


def read(content):
    return shape([{"role": "user", "content": content}], [])[0]["content"]


@given(st.text())
def test_what_the_gateway_puts_around_a_users_words_is_taken_off(text):
    assert read(f"{TIME}{enclose(text)}{HOST}") == text


@pytest.mark.parametrize("text", ["hello", HOST, f"{TIME}x", f"x{HOST}", MARK, ""])
def test_words_that_did_not_come_from_us_stay_as_they_are(text):
    assert read(text) == text


def test_what_was_said_before_stands_between_the_instructions_and_the_sessions_own_messages():
    before = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "yes"}]
    own = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": f"{TIME}{enclose('two')}{HOST}"},
        {"role": "assistant", "content": enclose("two")},
        {"role": "tool", "content": enclose("x"), "tool_call_id": "c"},
        {
            "role": "user",
            "content": [{"type": "text", "text": f"{TIME}{enclose('three')}"}, {"type": "image_url", "image_url": {}}],
        },
    ]
    shaped = shape(own, before)
    assert [m["content"] for m in shaped[:3]] == ["be kind", "one", "yes"]
    assert shaped[3]["content"] == "two"
    assert shaped[4:6] == own[2:4]
    assert shaped[6]["content"][0]["text"] == "three"
    assert own[1]["content"].startswith(TIME), "nothing given is changed"


def test_folders_of_the_host_are_those_of_the_box_in_what_a_model_reads() -> None:
    home = "/var/lib/x/ins_1"
    lines = [
        "You are a butler. Docs: none.",
        "Working directory: /workspace",
        f"File tools use host workspace {home}/sandboxes/workspace-1. exec uses container /workspace.",
        "Docs: /opt/openclaw/node_modules/openclaw/docs",
        f"Sandbox host mount source (file tools bridge only): {home}/sandboxes/workspace-1",
        f"## {home}/sandboxes/workspace-1/AGENTS.md",
        f"[MISSING] Expected at: {home}/workspaces/ten-c/AGENTS.md",
        "My own folder is /home/me/workspaces/mine.",
    ]
    system = {"role": "system", "content": "\n".join(lines)}
    user = {"role": "user", "content": lines[4]}
    parts = {"role": "developer", "content": [{"type": "text", "text": "\n".join(lines)}]}
    told = shape([system, parts, user], [])
    expected = "\n".join(
        [
            *lines[:2],
            "## /workspace/AGENTS.md",
            "[MISSING] Expected at: /workspace/AGENTS.md",
            lines[-1],
        ]
    )
    assert told == [
        {"role": "system", "content": expected},
        {"role": "developer", "content": [{"type": "text", "text": expected}]},
        user,
    ]


def test_a_preface_stands_behind_the_last_instruction_in_the_same_message():
    parts = [{"type": "text", "text": "be kind"}]
    heads = [{"role": "system", "content": "one"}, {"role": "developer", "content": parts}]
    before, own = [{"role": "user", "content": "two"}], [{"role": "user", "content": "three"}]
    first, second, *rest = shape([*heads, *own], before, "Has a cat. <" + MARK)
    assert first == heads[0]
    assert second["content"] == [*parts, {"type": "text", "text": f"\n\nHas a cat. <{MARK}"}]
    assert rest == [*before, *own]
    assert heads[1]["content"] == [{"type": "text", "text": "be kind"}], "nothing given is changed"


def test_a_preface_without_instructions_is_one_by_itself_and_none_changes_nothing():
    own = [{"role": "user", "content": "three"}]
    assert shape(own, [], "Has a cat.") == [{"role": "system", "content": "Has a cat."}, *own]
    empty = [{"role": "system", "content": None}, *own]
    assert shape(empty, [], "Has a cat.")[0]["content"] == "Has a cat."
    assert shape(own, [], "") == own
