"""Names by which an OpenClaw gateway knows a tenant's agent and its sessions.

    agent:<agent>:retinue:<account>:direct:c-<contact>:<session>:g<generation>

The shape is OpenClaw's own for direct messages kept apart per account, channel and peer. The gateway folds keys to
lower case, and gives a meaning to some of their segments (`main`, `thread`, `run`, `cron`, `subagent`, `acp`, `group`,
`signal`, `matrix`, `global`, `unknown`): so ours are lower case before they leave, and every segment that holds a value
begins with letters of ours, so that no name of a tenant or contact can become such a word. One name has one key and one
key one name: what cannot be written as it is, is escaped, and what would be too long becomes its digest.
"""

import base64
import hashlib
import re

AGENT_ID_LENGTH_MAX = 30
"""Characters of an agent id; OpenClaw takes up to 64, and folders and provider names are made of it."""

SESSION_KEY_LENGTH_MAX = 176
"""Characters of a session key. OpenClaw bounds some of its own uses of keys at 192."""

GENERATION_MAX = 2**31 - 1
"""A session has one more generation each time that its OpenClaw session is begun anew."""

_NAME_LENGTH_MAX = 26
"""Characters of an id after its prefix: what the ids of this system have."""

_DIGEST_LENGTH = 25
"""Base 32 characters of a digest: 125 bits, beyond the reach of who looks for two names with one digest."""

_CONTACT_LENGTH_MAX = 48
"""Characters of an escaped contact; a telephone number, a mail address or a name of an account as they are."""

_AGENT = re.compile(r"ten-[0-9a-z]{1,26}|tenx-[0-9a-z]{25}")
_WARM = "retinue:warm-up"
_REST = re.compile(
    r"retinue:(?:ten-[0-9a-z]{1,26}|tenx-[0-9a-z]{25}):direct:"
    r"(?:task|c-(?:[0-9a-z_-]|~[0-9a-f]{2}){1,48}|c-~~[0-9a-z]{25}):"
    r"(?:ses-[0-9a-z]{1,26}|sesx-[0-9a-z]{25}):g(?:0|[1-9][0-9]{0,9})"
)


def _digest(value: str) -> str:
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest).decode().lower()[:_DIGEST_LENGTH]


def _name(prefix: str, value: str) -> str:
    """Write an id: `ten_01k…` as `ten-01k…`; one of another form as its digest behind `tenx-`."""
    kind, _, rest = value.partition("_")
    if kind == prefix and re.fullmatch(rf"[0-9a-z]{{1,{_NAME_LENGTH_MAX}}}", rest):
        return f"{prefix}-{rest}"
    return f"{prefix}x-{_digest(value)}"


def _peer(contact: str) -> str:
    """Write a contact: `~` and two digits for each byte that is not a letter, digit, `_` or `-`; `~~` and a digest."""
    if not contact:
        return "task"
    escaped = "".join(
        chr(byte) if chr(byte) in "0123456789abcdefghijklmnopqrstuvwxyz_-" else f"~{byte:02x}"
        for byte in contact.encode("utf-8", "surrogatepass")
    )
    return f"c-{escaped}" if len(escaped) <= _CONTACT_LENGTH_MAX else f"c-~~{_digest(contact)}"


def agent_id(tenant_id: str) -> str:
    """Name a tenant's agent: `[a-z0-9-]`, at most AGENT_ID_LENGTH_MAX characters, another for each tenant."""
    return _name("ten", tenant_id)


def session_key(agent: str, tenant_id: str, contact: str, session_id: str, generation: int) -> str:
    """Name the OpenClaw session of a conversation.

    `agent` is what `agent_id` answered; `contact` is any text, "" where a task speaks with nobody; `generation` counts
    from 0. At most SESSION_KEY_LENGTH_MAX characters of `[a-z0-9_~:-]`. Raises ValueError for another agent or
    generation.
    """
    if not _AGENT.fullmatch(agent):
        raise ValueError(f"{agent!r} is no agent id of ours")
    if not 0 <= generation <= GENERATION_MAX:
        raise ValueError(f"generation {generation} is not between 0 and {GENERATION_MAX}")
    account, session = _name("ten", tenant_id), _name("ses", session_id)
    return f"agent:{agent}:retinue:{account}:direct:{_peer(contact)}:{session}:g{generation}"


def warm_key(agent: str) -> str:
    """Name the session in which an agent is warmed up; no conversation's. Raises ValueError for another agent."""
    if not _AGENT.fullmatch(agent):
        raise ValueError(f"{agent!r} is no agent id of ours")
    return f"agent:{agent}:{_WARM}"


def belongs(key: str, agent: str) -> bool:
    """Whether a key, as a gateway tells it, is one that this module makes for that agent, byte for byte."""
    head = f"agent:{agent}:"
    if not key.startswith(head) or not _AGENT.fullmatch(agent):
        return False
    rest = key[len(head) :]
    return rest == _WARM or _REST.fullmatch(rest) is not None
