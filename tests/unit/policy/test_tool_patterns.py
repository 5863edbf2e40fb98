"""Which calls a pattern means: the one it was made of, as little more as is of use, and never one that begins
something else."""

import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from retinue_policy.domain.tools.arguments import canonical, host_of, named_path, path_parts, simple_words
from retinue_policy.domain.tools.patterns import LOOKING, PATTERN_LENGTH_MAX, check_pattern, matches, pattern_of
from retinue_policy.domain.tools.wildcards import escaped, name_matches, path_matches


def runs(pattern, command, **more):
    return matches(pattern, "exec", {"command": command, **more})


@pytest.mark.parametrize(
    ("pattern", "command", "meant"),
    [
        ("git status *", "git status", True),
        ("git status *", "git status -s src", True),
        ("git status *", 'git  "status"  -s', True),
        ("git status *", "git log", False),
        ("git status *", "git statusx", False),
        ("git status *", "gitstatus", False),
        ("git status *", "git -c x=y status", False),
        ("git status *", "sudo git status", False),
        ("git status", "git status -s", False),
        ("git status", "git status", True),
        ("*", "anything at all", True),
        ("*", "anything; else", False),
        ("git status '*'", "git status -s", True),
        ("", "git", False),
        ("git 'status", "git status", False),
    ],
)
def test_words_mean_what_begins_with_them(pattern, command, meant):
    assert runs(pattern, command) is meant


HOSTILE = [
    "git status; rm -rf .",
    "git status && rm x",
    "git status || rm x",
    "git status | sh",
    "git status & rm x",
    "git status `rm x`",
    "git status $(rm x)",
    "git status $HOME",
    "git status > x",
    "git status < x",
    "git status\nrm x",
    "git status\rrm x",
    "git status\u2028rm x",
    "git status\x00",
    "git status 'a;b'",
    "git status {a,b}",
    "git status *",
    "git status ~root",
    "git status # x",
    "git status \\\nrm x",
    "git status 'open",
    "GIT_DIR=x git status",
    "! git status",
    "(git status)",
]


@pytest.mark.parametrize("command", HOSTILE)
def test_what_a_shell_would_do_more_with_is_never_meant_by_words(command):
    assert not runs("git status *", command)
    assert not runs("*", command)
    own = pattern_of("exec", {"command": command})
    assert own == canonical({"command": command}), "only the very same call is"
    assert runs(own, command)
    assert not runs(own, command + " ")


def test_a_command_elsewhere_is_another_one():
    assert runs("sh build.sh", "sh build.sh", cwd=".")
    assert runs("sh build.sh", "sh build.sh", cwd="/workspace", timeout_s=5)
    assert not runs("sh build.sh", "sh build.sh", cwd="vendor")
    assert not runs("ls *", "ls", env={"LD_PRELOAD": "x.so"})
    assert not runs("python3 x.py", "python3 x.py", stdin="what it reads")
    own = pattern_of("exec", {"command": "sh build.sh", "cwd": "vendor"})
    assert runs(own, "sh build.sh", cwd="vendor")
    assert not runs(own, "sh build.sh")


def test_allowed_for_good_a_program_that_only_looks_is_so_with_any_words_and_another_one_is_not():
    assert pattern_of("exec", {"command": "ls -la src"}) == "ls *"
    assert pattern_of("exec", {"command": "python3  'x.py' 1"}) == "python3 x.py 1"
    assert pattern_of("exec", {"command": "git status -s"}) == "git status -s"


COMMANDS = st.lists(
    st.sampled_from(["git", "status", "ls", "-s", "rm", "a b", "'x'", '"', ";", "|", "$(x)", "x=1", "*", "\n", "./x"]),
    min_size=1,
    max_size=5,
).map(" ".join) | st.text(max_size=20)


@given(COMMANDS, COMMANDS)
@example("ls a", "ls; rm x")
def test_a_pattern_never_means_a_command_that_begins_something_else(allowed, command):
    pattern = pattern_of("exec", {"command": allowed})
    assert runs(pattern, allowed), "what was allowed is allowed"
    if command == allowed or not runs(pattern, command):
        return
    words, other = simple_words(allowed), simple_words(command)
    assert words is not None
    assert other is not None
    assert other[0] == words[0]
    assert other == words or words[0] in LOOKING


@given(COMMANDS)
def test_words_of_a_simple_command_are_what_any_shell_makes_of_it(command):
    words = simple_words(command)
    if words is not None:
        assert words == tuple(shlex.split(command))
        assert not set(";&|`$()<>\n\r*?[]{}~!#\\\0").intersection(command)


@pytest.mark.parametrize(
    ("glob", "path", "meant"),
    [
        ("notes/*.md", "notes/a.md", True),
        ("notes/*.md", "./notes//a.md", True),
        ("notes/*.md", "/workspace/notes/a.md", True),
        ("notes/*.md", "notes/b/a.md", False),
        ("notes/*.md", "notes/../secret.md", False),
        ("notes/*.md", "x/../notes/a.md", False),
        ("notes/*.md", "/notes/a.md", False),
        ("notes/*.md", "/workspace2/notes/a.md", False),
        ("notes/**", "notes/b/a.md", True),
        ("notes/**", "notes/a", True),
        ("notes/**", "notes", False),
        ("**/a.md", "a.md", True),
        ("**/a.md", "x/y/a.md", True),
        ("n?tes", "notes", True),
        ("n?tes", "n/tes", False),
        ("**", "../etc/passwd", False),
        ("**", " a", False),
        ("**", "/etc/passwd", False),
        ("**", "a\nb", False),
        ("**", "a\x00b", False),
        ("**", "a" * 5000, False),
        ("\\*", "*", True),
        ("\\*", "x", False),
    ],
)
def test_globs_of_paths(glob, path, meant):
    assert matches(glob, "read", {"path": path}) is meant


def test_a_file_tool_with_arguments_that_are_not_understood_is_never_meant():
    assert not matches("**", "write", {"path": "a", "content": "x", "mode": "0777"})
    assert not matches("**", "write", {"content": "x"})
    assert not matches("**", "write", {"path": 5, "content": "x"})
    assert pattern_of("write", {"path": "../a", "content": "x"}) == ""


def test_deleting_a_folder_with_all_in_it_needs_a_pattern_of_its_own():
    plain, whole = {"path": "notes"}, {"path": "notes", "recursive": True}
    assert (pattern_of("delete", plain), pattern_of("delete", whole)) == ("notes", "-r notes")
    assert not matches("notes", "delete", whole)
    assert not matches("-r notes", "delete", plain)
    assert matches("-r notes", "delete", whole)
    assert not matches("-r notes", "delete", {"path": "other", "recursive": True})
    assert matches("notes", "delete", {"path": "notes", "recursive": False})
    assert pattern_of("delete", {"path": "-r notes"}) == "./-r notes"
    assert not matches(pattern_of("delete", {"path": "-r notes"}), "delete", whole)


PARTS = st.lists(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1), min_size=1)


@given(PARTS, PARTS)
def test_a_path_allowed_for_good_is_that_path_alone(parts, others):
    path, other = "/".join(parts), "/".join(others)
    pattern = pattern_of("write", {"path": path, "content": ""})
    if path_parts("write", {"path": path}) is None:
        assert pattern == ""
        return
    if len(pattern) > 0:
        assert matches(pattern, "write", {"path": path, "content": "anything"})
        same = path_parts("write", {"path": path}) == path_parts("write", {"path": other})
        assert matches(pattern, "write", {"path": other, "content": ""}) is same


@given(st.text(alphabet="ab/\\*?.", max_size=12))
def test_an_escaped_path_is_matched_by_itself(path):
    parts = [part for part in path.split("/") if part not in ("", ".")]
    assert path_matches(escaped("/".join(parts)), parts)


def test_bounded_hostile_globs_take_no_longer_than_the_product_of_lengths():
    name = "a" * 3000
    assert not name_matches("*a" * 50 + "b", name)
    assert not path_matches("**/a/" * 60 + "b", ["a"] * 2000)
    assert not path_matches("*a" * 50 + "b", [name])


def test_other_tools_are_allowed_with_exactly_the_same_arguments():
    pattern = pattern_of("mcp__crm__get", {"id": 5.0, "deep": {"b": [1.0, None], "a": True}})
    assert pattern == '{"deep":{"a":true,"b":[1,null]},"id":5}'
    assert matches(pattern, "mcp__crm__get", {"deep": {"a": True, "b": [1, None]}, "id": 5})
    assert not matches(pattern, "mcp__crm__get", {"id": 6})
    assert pattern_of("python", {"code": "x" * PATTERN_LENGTH_MAX}) == "", "too long to be kept"


@pytest.mark.parametrize("pattern", ["", "a\nb", "x" * (PATTERN_LENGTH_MAX + 1)])
def test_patterns_of_rules_are_one_bounded_line(pattern):
    assert check_pattern(pattern)
    assert not check_pattern("git status *")


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("a/../secret/x", "secret/x"),
        ("./a", "a"),
        ("/workspace", "."),
        ("/workspace/../etc", "/etc"),
        ("//etc/passwd", "/etc/passwd"),
        ("../x", "../x"),
        (" secret/x\n", "secret/x"),
        ("", None),
        (" ", None),
        (5, None),
    ],
)
def test_rules_see_where_a_path_leads(path, named):
    assert named_path("read", {"path": path}) == named
    assert named_path("exec", {"path": path}) is None


def test_listing_without_a_path_is_listing_the_workspace():
    assert named_path("list", {}) == named_path("list", {"path": ""}) == "."
    assert matches(".", "list", {})
    assert not matches("notes/**", "list", {})


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Example.com:8443/x", "example.com"),
        ("https://user:pass@example.com./", "example.com"),
        ("http://[::1]:80/", "::1"),
        ("http://[::1", ""),
        ("example.com", ""),
        (None, ""),
    ],
)
def test_rules_see_the_host_of_a_url(url, host):
    assert host_of({"url": url}) == host
