"""What an agent may do with its tools, as its tenant and an operator read it."""

from refusals import assert_refused

BUILT_IN = ["delete", "edit", "exec", "list", "memory_note", "memory_search"]
BUILT_IN += ["python", "read", "schedule_task", "write"]


async def test_a_tenant_reads_what_its_agent_may_do_and_which_layer_says_so(client):
    answer = (await client.get("/v1/tools")).json()
    found = {tool["tool"]: tool for tool in answer["tools"]}
    assert sorted(found) == BUILT_IN
    assert {name: found[name]["effect"] for name in ("read", "exec", "delete")} == {
        "read": "allow",
        "exec": "allow",
        "delete": "ask",
    }
    assert found["delete"]["steps"][0] == {
        "layer": "profile",
        "effect": "allow",
        "rule": "profile.standard.allow: group:files",
    }
    assert answer["unknown"] == []
    (one,) = (await client.get("/v1/tools", params={"tool": "mcp__crm__get", "runtime": "light"})).json()["tools"]
    assert (one["effect"], one["layer"], one["rule"]) == ("deny", "profile", "profile.standard.allow")


async def test_without_allowances_there_is_nothing_to_list_or_take_back(client):
    answer = (await client.get("/v1/allowances")).json()
    assert answer == {"allowances": [], "next_page_token": ""}
    assert_refused(await client.delete("/v1/allowances/alw_none"), 404, "ALLOWANCE_NOT_FOUND")


def test_an_operator_is_told_which_rule_decides(mesh):
    mesh.token("e2e-rules")
    told = mesh.command("policy", "explain", "--tenant", "e2e-rules", "--tool", "delete").stdout
    assert "global.security: delete" in told
    assert "profile.standard.allow: group:files" in told
    assert told.splitlines()[-1].startswith("Rules: ")
