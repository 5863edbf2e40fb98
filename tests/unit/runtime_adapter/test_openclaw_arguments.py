"""What OpenClaw's own tools are asked, as rules know it, and for whom they are called."""

from typing import Any

import pytest
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest
from retinue_kit import tenancy
from retinue_kit.errors import Reason, RetinueError
from retinue_policy.domain.tools.arguments import named_path
from retinue_policy.domain.tools.patterns import matches, pattern_of
from retinue_policy.domain.tools.summaries import summary_of
from retinue_runtime_adapter.domain.models import Catalogue, Model
from retinue_runtime_adapter.openclaw.permits import CALLS_MAX, Permits, identity
from retinue_runtime_adapter.openclaw.tool_arguments import as_ours
from retinue_runtime_adapter.tools.ports import Call, Scope, Verdict

EDIT = {"oldText": "a", "newText": "b"}


@pytest.mark.parametrize(
    ("tool", "theirs", "ours"),
    [
        ("read", {"path": "a.txt", "offset": 3}, {"path": "a.txt", "offset": 3}),
        ("read", {"file_path": "a.txt", "cursor": 0, "optional": True}, {"path": "a.txt"}),
        ("read", {"path": "a.txt", "filePath": "a.txt"}, {"path": "a.txt"}),
        ("write", {"file_path": "a.txt", "content": "x"}, {"path": "a.txt", "content": "x"}),
        ("edit", {"path": "a", "edits": [EDIT]}, {"path": "a", "old_text": "a", "new_text": "b"}),
        ("edit", {"path": "a", **EDIT}, {"path": "a", "old_text": "a", "new_text": "b"}),
        ("edit", {"path": "a", "old_string": "a", "new_string": "b"}, {"path": "a", "old_text": "a", "new_text": "b"}),
        (
            "edit",
            {"path": "a", "edits": [EDIT, {"oldText": "c", "newText": "d"}], "oldText": "e", "newText": "f"},
            {"path": "a", "old_text": "a\nc\ne", "new_text": "b\nd\nf"},
        ),
        ("exec", {"command": "ls", "workdir": "/tmp", "title": "Look"}, {"command": "ls", "cwd": "/tmp"}),
        ("exec", {"command": "ls", "timeoutSeconds": 5, "yieldMs": 1}, {"command": "ls", "timeout_s": 5}),
        ("memory_note", {"title": "x", "file_path": "y"}, {"title": "x", "file_path": "y"}),
    ],
)
def test_arguments_are_written_under_the_names_that_rules_know(
    tool: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    assert as_ours(tool, theirs) == ours


@pytest.mark.parametrize(
    ("tool", "theirs", "pattern"),
    [
        ("write", {"file_path": "notes/a.md", "content": "x"}, "notes/*.md"),
        ("edit", {"path": "/workspace/notes/a.md", "edits": [EDIT]}, "notes/*.md"),
        ("exec", {"command": "git status -s", "workdir": "", "title": "Look"}, "git status *"),
    ],
)
def test_a_pattern_means_the_same_call_on_either_runtime(tool: str, theirs: dict[str, Any], pattern: str) -> None:
    assert matches(pattern, tool, as_ours(tool, theirs))
    assert pattern_of(tool, as_ours(tool, theirs))


@pytest.mark.parametrize(
    ("tool", "theirs", "pattern"),
    [
        ("exec", {"command": "git status", "workdir": "/tmp"}, "git status *"),
        ("exec", {"command": "git status", "env": {"PATH": "/tmp"}}, "git status *"),
        ("exec", {"command": "git status", "host": "gateway"}, "git status *"),
        ("edit", {"path": "a", "edits": [{**EDIT, "all": True}]}, "a"),
        ("edit", {"path": "a", "edits": "[]"}, "a"),
        ("edit", {"path": "a", "oldText": "x"}, "a"),
    ],
)
def test_what_could_do_more_than_is_compared_is_on_no_list(tool: str, theirs: dict[str, Any], pattern: str) -> None:
    assert not matches(pattern, tool, as_ours(tool, theirs))


def test_rules_for_paths_and_persons_see_what_is_named() -> None:
    assert named_path("read", as_ours("read", {"file_path": "/workspace/secrets/../secrets/key"})) == "secrets/key"
    said = summary_of("edit", as_ours("edit", {"path": "a.txt", "edits": [EDIT]}))
    assert said == "Edit a.txt: a → b"


@pytest.mark.parametrize(
    "path",
    [
        "@secrets/key",
        "~/key",
        "file:///workspace/key",
        "C:\\key",
        "a\\b",
        "key</arg_value>>",
        "plan.docodex",
        "a\u00a0b",
    ],
)
def test_a_path_that_openclaw_may_read_as_another_is_refused(path: str) -> None:
    with pytest.raises(RetinueError) as refused:
        as_ours("read", {"path": path})
    assert refused.value.reason is Reason.FIELD_INVALID
    assert as_ours("read", {"path": "12:30 – a@b.docx"})


def test_a_path_that_is_named_twice_must_be_one() -> None:
    with pytest.raises(RetinueError) as refused:
        as_ours("write", {"path": "notes/a", "file_path": "secrets/a", "content": ""})
    assert refused.value.reason is Reason.FIELD_INVALID


MODELS = Catalogue(
    [
        Model("large", "openai", "gpt-large", aliases=("best",), fallback="small"),
        Model("small", "local", "llama"),
        Model("acme/own", "acme", "own"),
    ],
    "small",
)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("large", "openai/large"),
        ("best", "openai/large"),
        ("small", "local/small"),
        ("", "local/small"),
        ("nobody's", "local/small"),
        ("acme/own", "acme/acme/own"),
    ],
)
def test_rules_know_a_model_by_who_serves_it(name: str, known: str) -> None:
    assert MODELS.with_provider(name) == known
    request = InvokeRequest(tenant_id="ten_a", run_id="run_a", model=name)
    assert identity(request, "openclaw", 1, MODELS).scope.model == known


class Willing:
    """An authority that allows."""

    async def authorize(self, scope: Scope, call: Call, *, approved: bool = False) -> Verdict:
        return Verdict("allow")


async def test_calls_are_open_for_the_attempt_that_began_them_and_one_that_joins_it() -> None:
    tenancy.enter(tenancy.Identity("ten_a", "usr_1"))
    request = InvokeRequest(tenant_id="ten_a", run_id="run_a", tools=["exec", "read"])
    first, permits = identity(request, "openclaw", 1, MODELS), Permits(Willing())
    await permits.open(first, Call("c1", "exec", {"command": "ls"}))
    joined = identity(request, "openclaw", 2, MODELS, first)
    assert (joined.scope.fencing_token, joined.scope.principal) == (2, "usr_1")
    assert permits.find(joined, command=True).call_id == "c1"
    with pytest.raises(RetinueError):
        permits.find(identity(request, "openclaw", 3, MODELS), command=True)
    permits.close(joined, "c1")
    with pytest.raises(RetinueError):
        permits.find(first, command=True)


async def test_bounded_open_calls_of_an_attempt() -> None:
    request = InvokeRequest(tenant_id="ten_a", run_id="run_a", tools=["read"])
    run, permits = identity(request, "openclaw", 1, MODELS), Permits(Willing())
    for number in range(CALLS_MAX + 1):
        await permits.open(run, Call(str(number), "read", {}))
    assert (len(run.open), next(iter(run.open))) == (CALLS_MAX, "1")
