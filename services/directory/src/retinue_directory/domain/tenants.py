"""A tenant, its settings and its agent."""

from dataclasses import dataclass, field, replace
from datetime import datetime

DEFAULT_PLAN = "pro"
DEFAULT_USER = "owner"

DEFAULT_MODEL = "default"
"""Said in place of a model's name, it takes an agent back to the deployment's own."""

AGENT_NAME = "Butler"
AGENT_PERSONA = (
    "You are Butler, the private assistant of the people who write to you. Be helpful, honest and brief; answer in the"
    " language you are spoken to in. Say so when you do not know something or cannot do it, and never make up facts."
    " What one contact tells you is not for any other."
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may set for a tenant; 0 and empty text mean the deployment's default."""

    concurrent_run_count: int = 0
    preferred_runtime: str = ""
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Agent:
    """A tenant's own butler."""

    agent_id: str
    name: str = AGENT_NAME
    persona: str = AGENT_PERSONA
    model: str = ""

    def changed(self, name: str, persona: str, model: str) -> "Agent":
        """Apply what is not empty; the model "default" takes back to the deployment's own."""
        return replace(
            self,
            name=name or self.name,
            persona=persona or self.persona,
            model="" if model == DEFAULT_MODEL else model or self.model,
        )


@dataclass(frozen=True, slots=True)
class Tenant:
    """The isolation boundary. `agent` is None where only a list was asked for."""

    tenant_id: str
    name: str
    plan: str
    create_time: datetime
    settings: Settings = field(default_factory=Settings)
    agent: Agent | None = None
