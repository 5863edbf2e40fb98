"""What `retinue policy explain` shows."""

from retinue.policy.v1.tool_service_pb2 import ExplainToolsResponse, LayerStep, ToolDecision, ToolExplanation
from retinue_cli.commands.policy import COLUMNS, line, plain

DECISION = ToolDecision(effect="deny", layer="agent", rule="agent.agt_a.deny: exec", reason="exec is denied.")
EXPLAINED = ToolExplanation(tool="exec", decision=DECISION, steps=[LayerStep(layer="profile", effect="allow")])


def test_a_line_tells_what_becomes_of_a_tool_and_who_says_so() -> None:
    told = ("exec", "deny", "agent", "agent.agt_a.deny: exec", "exec is denied.")
    assert dict(zip(COLUMNS, line(EXPLAINED), strict=True)) == dict(zip(COLUMNS, told, strict=True))


def test_programs_get_every_field_also_those_that_are_empty() -> None:
    found = plain(ExplainToolsResponse(tools=[EXPLAINED], rules="1234"))
    assert found["unknown"] == []
    assert found["tools"][0]["steps"] == [{"layer": "profile", "effect": "allow", "rule": ""}]
    assert (found["tools"][0]["decision"]["pattern"], found["rules"]) == ("", "1234")
