"""What agents may do, as the gateway is told, and how users' words go through it."""

import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_runtime_adapter.openclaw import tool_policy, words


def test_no_tool_is_the_denial_of_all_and_never_an_empty_list() -> None:
    assert tool_policy.agent_tools() == {"deny": ["*"]}
    assert tool_policy.agent_tools([]) == {"deny": ["*"]}


def test_tools_that_are_named_are_allowed_and_no_other() -> None:
    assert tool_policy.agent_tools(["write", "read", "read"]) == {"profile": "full", "allow": ["read", "write"]}


def test_commands_may_be_run_only_where_that_is_allowed() -> None:
    assert tool_policy.base_tools()["exec"] == {"host": "sandbox", "mode": "deny"}
    assert "exec" not in tool_policy.agent_tools(["read"])
    assert tool_policy.agent_tools(["exec"])["exec"] == {"mode": "full"}


def test_an_agent_without_an_entry_of_its_own_has_no_built_in_tool() -> None:
    tools = tool_policy.base_tools()
    assert (tools["profile"], tools["deny"]) == ("minimal", list(tool_policy.OFF))
    assert not {"memory_search", "group:memory", "group:openclaw"} & set(tools["deny"]), "one of ours has that name"
    assert tools["sessions"] == {"visibility": "self"}
    assert not tools["elevated"]["enabled"]
    assert not tools["agentToAgent"]["enabled"]


def test_every_tool_runs_in_a_box_that_has_nothing_of_the_host() -> None:
    assert tool_policy.sandbox().items() >= {"mode": "all", "backend": "retinue", "workspaceAccess": "none"}.items()


def test_our_plugin_is_loaded_and_no_other() -> None:
    plugins = tool_policy.plugin_config("/p", "http://127.0.0.1:1", "secret")
    assert plugins["allow"] == list(plugins["entries"]) == ["retinue-bridge"]
    assert plugins["load"] == {"paths": ["/p"]}
    assert plugins["slots"] == {"memory": "none"}


def test_the_token_of_an_instance_stands_in_the_plugins_own_configuration_alone() -> None:
    policy = tool_policy.policy("/p", "http://127.0.0.1:1", "hushhush", allowed=["exec"])
    parts = [policy.tools, policy.agent_tools, policy.sandbox, policy.commands]
    assert "hushhush" not in json.dumps([dict(part) for part in parts])
    assert json.dumps(dict(policy.plugins)).count("hushhush") == 1
    assert not any(policy.commands.values())


def test_the_plugin_lies_in_the_package_as_its_manifests_say() -> None:
    folder = resources.files("retinue_runtime_adapter.openclaw") / "plugin"
    manifest = json.loads((folder / "openclaw.plugin.json").read_text())
    package = json.loads((folder / "package.json").read_text())
    assert manifest["id"] == tool_policy.PLUGIN_ID
    assert manifest["version"] == package["version"]
    assert all((folder / name).is_file() for name in package["openclaw"]["extensions"])
    assert (folder / "exec.mjs").is_file()
    assert f'BACKEND_ID = "{tool_policy.BACKEND_ID}"' in (folder / "index.mjs").read_text()


@given(st.text(), st.sampled_from(["", "[Sat 2026-11-21 17:10 UTC] "]), st.sampled_from(["", "\n\nRuntime: host=vm"]))
def test_a_users_words_come_out_as_they_went_in(text: str, before: str, behind: str) -> None:
    assert words.disclose(before + words.enclose(text) + behind) == text


@pytest.mark.parametrize("text", ["", "hello", "/new", words.MARK, f"a{words.MARK}b"])
def test_what_has_no_two_marks_stays_as_it_is(text: str) -> None:
    assert words.disclose(text) == text


@pytest.mark.parametrize("text", ["/new", " /reset now", "! ls", "[Sat 2026-11-21 17:10 UTC] x"])
def test_nothing_that_a_gateway_could_take_for_an_order_comes_first(text: str) -> None:
    assert words.enclose(text)[0] == words.MARK
    assert words.enclose(text).strip() == words.enclose(text)
