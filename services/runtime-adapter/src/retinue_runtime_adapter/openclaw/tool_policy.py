"""Which tools an agent of OpenClaw may use: those that are named, and where there is no box, none.

Agents are made before their tenants come, so what is named is the same for all of a gateway's. Policy decides about
each call (permits.py), and the model of a run is shown what policy offers the run (proxy/asking.py).

What OpenClaw makes of these settings was found by running it, and is held by the contract suite on a real gateway.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinue_runtime_adapter.openclaw.gateway_config import Policy

PLUGIN_ID = "retinue-bridge"
"""Our plugin, as its manifest names it."""

PLUGIN_DIR = Path(__file__).parent / "plugin"
"""Where it lies in this package."""

BACKEND_ID = "retinue"
"""The sandbox backend that it registers."""

BOX_TOOLS = ("edit", "exec", "read", "write")
"""OpenClaw's own tools that work in a box, by its names, which are policy's too."""

MESH_TOOLS = ("memory_note", "memory_search", "schedule_task")
"""Tools of the mesh's own, as the plugin's manifest names them."""

OFF = (
    *("group:web", "group:sessions", "group:ui", "group:messaging", "group:automation", "group:nodes"),
    *("group:agents", "group:media", "memory_get", "code_execution", "secrets"),
)
"""Every built-in tool of OpenClaw's but those that touch files and run commands. It is what `group:openclaw` means, but
for `memory_search`: a tool of ours has that name, and OpenClaw's own comes with its memory, which is off."""

COMMANDS_OFF = ("native", "nativeSkills", "text", "bash", "config", "mcp", "plugins", "debug", "restart")
"""Commands in messages. A run that is asked for as we do it knows none of them; this is for every other way in."""

Json = dict[str, Any]


def base_tools() -> Json:
    """Write the `tools` part of openclaw.json: what no agent's own entry can loosen, and what one without any gets.

    What is OFF acts on the gateway, on its other agents or on its network, and none of that is a tenant's. The rest
    runs in a box or not at all.
    """
    return {
        "profile": "minimal",
        "deny": list(OFF),
        "exec": {"host": "sandbox", "mode": "deny"},
        "fs": {"workspaceOnly": True},
        "elevated": {"enabled": False},
        "agentToAgent": {"enabled": False},
        "sessions": {"visibility": "self"},
        "toolSearch": False,
        "codeMode": False,
        # The second allowlist, for what runs in a box, is the agent's own: an empty one adds no bound.
        "sandbox": {"tools": {"allow": []}},
    }


def agent_tools(allowed: Sequence[str] = ()) -> Json:
    """Write the `tools` part of an agent's entry: the tools of these names and no other.

    None is said as the denial of all: OpenClaw takes an empty allowlist for no bound at all, and fails a run whose
    list matches nothing.
    """
    if not allowed:
        return {"deny": ["*"]}
    tools: Json = {"profile": "full", "allow": sorted(set(allowed))}
    if "exec" in allowed:
        tools["exec"] = {"mode": "full"}
    return tools


def sandbox() -> Json:
    """Write `agents.defaults.sandbox`: every tool runs in the box of its session, and nothing of this host is in it.

    The scope is OpenClaw's own: for each agent, instead of each session, it makes a folder that we have no use for.
    """
    return {"mode": "all", "backend": BACKEND_ID, "scope": "agent", "workspaceAccess": "none"}


def plugin_config(directory: str, bridge_url: str, token: str, tools: Sequence[Mapping[str, Any]] = ()) -> Json:
    """Write the `plugins` part of openclaw.json: ours is loaded from its folder, and no other at all.

    `directory` is PLUGIN_DIR as the gateway's process sees it. `bridge_url` is the bridge's; "" if there is none: what
    wants a box fails then. `token` is the instance's own, good for the bridge alone. `tools` are the mesh's own, as
    the bridge describes them; the plugin's manifest has to name each.
    """
    config = {"bridgeUrl": bridge_url, "token": token, "tools": [dict(tool) for tool in tools]}
    return {
        "allow": [PLUGIN_ID],
        "load": {"paths": [directory]},
        "slots": {"memory": "none"},
        "entries": {PLUGIN_ID: {"enabled": True, "config": config}},
    }


def policy(
    directory: str, bridge_url: str, token: str, *, allowed: Sequence[str] = (), tools: Sequence[Mapping[str, Any]] = ()
) -> Policy:
    """Write all of it for one instance, whose agents may use what is `allowed`; the rest is `plugin_config`'s."""
    return Policy(
        tools=base_tools(),
        agent_tools=agent_tools(allowed),
        plugins=plugin_config(directory, bridge_url, token, tools),
        sandbox=sandbox(),
        commands=dict.fromkeys(COMMANDS_OFF, False),
    )
