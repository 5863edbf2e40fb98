"""Who may call a tool of whom, as Cedar policies say, evaluated in this process."""

import json
from collections.abc import Mapping
from typing import Any

import cedarpy

from retinue_policy.domain.tools.catalogue import group_of
from retinue_policy.domain.tools.ruleset import Who
from retinue_policy.operations.rulebook import BadRulesError
from retinue_policy.operations.tools import Permission

NOBODY = "-"
"""Id of the tenant that an agent belongs to of whom it is not known that it is the tenant's own."""

MCP = "mcp"
"""The kind of calls that a client makes by itself; every other one is made by the tenant's agent, for whoever asked."""

_ACTION = {"type": "Action", "id": "call_tool"}


class CedarRules:
    """Implements operations.tools.Permitting."""

    def __init__(self, policies: Mapping[str, str], schema: str) -> None:
        """Read policies, by the names of their files, and check them. Raises BadRulesError."""
        for name, text in policies.items():
            _check(name, text, schema)
        self._policies = cedarpy.PolicySet.from_str("\n".join(policies.values()))

    def permit(self, who: Who, tool: str, facts: Mapping[str, str], *, own_agent: bool) -> Permission:
        """Ask whether somebody may call a tool, where `facts` are known of the arguments.

        A policy that cannot be evaluated refuses: Cedar itself would pass over it, and over what it forbids.
        """
        tenant = {"type": "Tenant", "id": who.tenant_id}
        agent = {"type": "Agent", "id": who.agent_id or who.tenant_id}
        principal = {"type": "User", "id": who.principal} if who.principal else agent
        home = tenant if own_agent else {"type": "Tenant", "id": NOBODY}
        resource = {"type": "Tool", "id": tool}
        attributes = {"name": tool, "group": group_of(tool), "tenant": {"__entity": tenant}}
        entities = [
            {"uid": tenant, "attrs": {"plan": who.plan}, "parents": []},
            {"uid": agent, "attrs": {}, "parents": [home]},
            {"uid": resource, "attrs": attributes, "parents": []},
        ]
        if who.principal:
            # What a rule says of the agent it says of whoever asks the agent, too.
            parents = [home] if who.kind == MCP else [home, agent]
            entities.append({"uid": principal, "attrs": {}, "parents": parents})
        context = {
            "kind": who.kind,
            "runtime": who.runtime,
            "provider": who.provider,
            "subagent": who.subagent,
            **facts,
        }
        request = {"principal": principal, "action": _ACTION, "resource": resource, "context": context}
        return _permission(cedarpy.is_authorized(request, self._policies, json.dumps(entities)))


def _permission(result: cedarpy.AuthzResult) -> Permission:
    found = result.diagnostics
    if result.decision is cedarpy.Decision.NoDecision or found.errors:
        return Permission(False, "error", "A rule cannot be evaluated, so that nothing is permitted.")
    names: Mapping[str, Any] = found.id_annotations_by_reason
    rule = min((names.get(reason) or reason for reason in found.reasons), default="")
    if result.allowed:
        return Permission(True, rule, "")
    if rule:
        return Permission(False, rule, f"The rule {rule} forbids it.")
    return Permission(False, "none", "No rule permits it.")


def _check(name: str, text: str, schema: str) -> None:
    try:
        result = cedarpy.validate_policies(text, schema)
        if not result.validation_passed:
            raise BadRulesError(f"{name}: {' '.join(str(result.errors[0]).split())}")
        if cedarpy.PolicySet.from_str(text).templates():
            raise BadRulesError(f"{name}: a template is never filled in here")
    except ValueError as error:
        raise BadRulesError(f"{name}: {' '.join(str(error).split())}") from None
