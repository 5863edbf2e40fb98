"""What a gateway is told to be: openclaw.json and the patches that add a tenant's agent to it and take it off.

Nothing is on that we do not need: no channel, schedule, browser, canvas, heartbeat, discovery or look for updates; and
what an agent may do is an allowlist of its own (see tool_policy.py).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

CONFIG_NAME = "openclaw.json"
"""The file, in the instance's folder; mode 0600, since the gateway's token and the agents' credentials are in it."""

NOBODY = "nobody"
"""The agent, and the provider, that OpenClaw wants as its default. Its credential is good for nothing."""

MODEL = "default"
"""What agents call their model. Which one it is, our endpoint knows."""

WINDOW_TOKENS = 200_000
"""What OpenClaw believes the window to be. Ours tells an overflow in words that it understands."""

OUTPUT_TOKENS_MAX = 8192
"""Tokens of one answer that OpenClaw asks for."""

RUNS_MAX = 32
"""Runs at once, as OpenClaw counts. We admit fewer; this only lets warming up go on beside them."""

LOG_SIZE_MAX_BYTES = 1024 * 1024
"""A log file's size. Up to five former ones are kept beside it."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Policy:
    """What gateways and their agents may do, as tool_policy.py writes it."""

    tools: Mapping[str, Any]
    """The `tools` part of openclaw.json."""

    agent_tools: Mapping[str, Any]
    """The `tools` part of an agent's entry."""

    plugins: Mapping[str, Any]
    """The `plugins` part of openclaw.json: only what is named is loaded."""

    sandbox: Mapping[str, Any] = field(default_factory=dict)
    """Of all agents: where their tools run."""

    commands: Mapping[str, Any] = field(default_factory=dict)
    """The `commands` part of openclaw.json: what a message may order the gateway to do."""


class Policies(Protocol):
    """What each instance may do: the credential for its tools is its own."""

    def of(self, instance_id: str) -> Policy:
        """Write an instance's."""
        ...

    def forget(self, instance_id: str) -> None:
        """The instance is gone, and its credential with it."""
        ...


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent of a gateway, with the provider that only it uses."""

    agent_id: str
    proxy_base_url: str
    credential: str = field(repr=False)


def _provider(base_url: str, credential: str) -> Json:
    model: Json = {
        "id": MODEL,
        "name": MODEL,
        "reasoning": False,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": WINDOW_TOKENS,
        "maxTokens": OUTPUT_TOKENS_MAX,
    }
    return {"baseUrl": base_url, "apiKey": credential, "api": "openai-completions", "models": [model]}


def provider_name(agent_id: str) -> str:
    """Name the provider that only this agent uses."""
    return f"p-{agent_id}"


def workspace(agent_id: str) -> str:
    """Name an agent's workspace, in the home of the gateway wherever that is."""
    return f"~/workspaces/{agent_id}"


def agents_patch(agents: Iterable[Agent], policy: Policy) -> Json:
    """Add agents, each with its own provider and credential and with what it may do."""
    patch: Json = {"models": {"providers": {}}, "agents": {"entries": {}}}
    for agent in agents:
        name = provider_name(agent.agent_id)
        patch["models"]["providers"][name] = _provider(agent.proxy_base_url, agent.credential)
        patch["agents"]["entries"][agent.agent_id] = {
            "workspace": workspace(agent.agent_id),
            "model": {"primary": f"{name}/{MODEL}"},
            "tools": dict(policy.agent_tools),
        }
    return patch


def renewal_patch(agents: Iterable[Agent]) -> Json:
    """Give agents that are there other credentials."""
    return {"models": {"providers": {provider_name(one.agent_id): {"apiKey": one.credential} for one in agents}}}


def removal_patch(agent_id: str) -> tuple[Json, list[str]]:
    """Take off what `agents.delete` leaves of an agent; answers the patch, and the lists that it may empty."""
    name = provider_name(agent_id)
    return {"models": {"providers": {name: None}}}, [f"models.providers.{name}.models"]


def openclaw_json(*, port: int, token: str, proxy_base_url: str, policy: Policy, agents: Iterable[Agent] = ()) -> bytes:
    """Write openclaw.json, with agents that are there from the beginning. Its paths begin at the gateway's home."""
    first = agents_patch(agents, policy)
    config: Json = {
        "gateway": {
            "mode": "local",
            "port": port,
            # Only who comes from its own loopback needs no paired device.
            "bind": "loopback",
            "auth": {"mode": "token", "token": token},
            "controlUi": {"enabled": False},
        },
        "update": {"checkOnStart": False},
        "telemetry": {"enabled": False},
        "discovery": {"mdns": {"mode": "off"}},
        "browser": {"enabled": False},
        "cron": {"enabled": False},
        "hooks": {"enabled": False},
        "skills": {"allowBundled": []},
        "plugins": dict(policy.plugins),
        "logging": {
            "file": "~/openclaw.log",
            "level": "warn",
            "consoleLevel": "warn",
            "maxFileBytes": LOG_SIZE_MAX_BYTES,
            # Who did what is in our own log, and here it would be written on every event.
            "audit": {"enabled": False},
        },
        # Its maintenance has nothing to do where agents are reaped whole, and costs more than the turns: it opens each
        # agent's files again in threads of its own, which may keep the gateway's own state locked for good.
        "session": {"dmScope": "per-account-channel-peer", "maintenance": {"mode": "warn"}},
        "models": {
            "mode": "replace",
            "catalogRefresh": {"enabled": False},
            "providers": {NOBODY: _provider(proxy_base_url, NOBODY), **first["models"]["providers"]},
        },
        "agents": {
            "ownership": "explicit",
            "defaults": {
                "model": {"primary": f"{NOBODY}/{MODEL}"},
                "maxConcurrent": RUNS_MAX,
                "skipBootstrap": True,
                # Those that come with OpenClaw are about its host, and none is in a box.
                "skills": [],
                "heartbeat": {"every": "0m"},
                "sandbox": dict(policy.sandbox),
            },
            "entries": {
                NOBODY: {"workspace": workspace(NOBODY), "tools": dict(policy.agent_tools)},
                **first["agents"]["entries"],
            },
        },
        "tools": dict(policy.tools),
        "commands": dict(policy.commands),
    }
    return json.dumps(config, indent=1).encode()
