"""Files are small, stand where they belong and say nothing that only their author can understand."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

Matching = Callable[..., dict[str, str]]

PYTHON_LINES_MAX = 400
"""What a reader can hold in mind at once; the median is to be a third of it."""

PROTO_LINES_MAX = 350
"""A service with its requests and responses."""

TOP = {
    *{".ci", ".gitignore", "LICENSE", "Makefile", "README.md", "buf.yaml", "pyproject.toml", "uv.lock"},
    *{"deploy", "docs", "gateway", "libs", "proto", "services", "tests", "third_party"},
    "bench-results.json",
}
"""What stands at the top; whatever else turns up there was left by accident."""

KINDS = {
    *{".py", ".typed", ".proto", ".sql", ".lua", ".toml", ".yaml", ".yml", ".json", ".md", ".lock", ".binpb"},
    *{".sh", ".css", ".cedar", ".cedarschema", ".html", ".js", ".svg", ".pem", ".tpl", ".jsonl", ".mjs", ".bpf"},
}
"""Kinds of files that have a place here; a new kind is added with its first file."""

NAMED = {"Makefile", "Dockerfile", "LICENSE", ".gitignore", ".dockerignore", "run"}

UNFINISHED = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]
REGISTRIES = [r"py" + r"pi\.org", r"python" + r"hosted\.org", r"npm" + r"js\.(org|com)", r"crates" + r"\.io"]
PLACES = [r"(?<![\w.])/work" + r"/", r"(?<![\w.])/ro" + r"ot/"]
ASIDES = [
    *(r"\bissue" + r" #?\d", r"\b[A-F]" + r"[1-9]\d\b(?!['\"])", r"seeds-" + r"checklist"),
    *(r"chat" + r"gpt", r"copi" + r"lot"),
]


def test_python_files_are_short(matching: Matching) -> None:
    long = {path: text.count("\n") for path, text in matching(".py").items() if text.count("\n") > PYTHON_LINES_MAX}
    assert not long


def test_the_contracts_files_are_short(matching: Matching) -> None:
    long = {path: text.count("\n") for path, text in matching(".proto").items() if text.count("\n") > PROTO_LINES_MAX}
    assert not long


def test_the_top_folder_holds_only_what_belongs_there(files: list[Path], root: Path) -> None:
    assert {path.relative_to(root).parts[0] for path in files} <= TOP


def test_each_file_is_of_a_known_kind(files: list[Path], root: Path) -> None:
    stray = [str(f.relative_to(root)) for f in files if f.suffix not in KINDS and f.name not in NAMED]
    assert not stray


def test_no_module_is_empty(matching: Matching) -> None:
    """An `__init__.py` may be: it says only that a folder is a package."""
    empty = [path for path, text in matching(".py", ".sql", ".lua", ".md").items() if not text.strip()]
    assert [path for path in empty if not path.endswith("__init__.py")] == []


def test_test_modules_have_names_of_their_own_within_a_folder(files: list[Path]) -> None:
    names = Counter(path for path in files if path.name.startswith("test_"))
    assert all(count == 1 for count in names.values())


@pytest.mark.parametrize(
    ("what", "patterns"),
    [
        ("unfinished", UNFINISHED),
        ("a registry's host", REGISTRIES),
        ("one machine's path", PLACES),
        ("an aside that no reader can follow", ASIDES),
    ],
)
def test_no_file_holds(what: str, patterns: list[str], texts: dict[str, str]) -> None:
    pattern = re.compile("|".join(patterns))
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts.items()
        if path != "pyproject.toml" or what != "an aside that no reader can follow"  # it names rules of the linter
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"{what}: {found}"


def test_lines_end_plainly(texts: dict[str, str]) -> None:
    untidy = [p for p, text in texts.items() if "\r" in text or "\t\n" in text or " \n" in text]
    assert [path for path in untidy if not path.endswith(".md")] == []
