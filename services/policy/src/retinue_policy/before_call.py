"""What an operator's own endpoint says of each tool call before it is made: `before_tool_call`, for every runtime."""

from typing import Literal

import aiohttp
import msgspec
import structlog
from retinue_kit import deadlines, telemetry
from retinue_kit.metrics import counter

from retinue_policy.domain.tools.manners import Effect
from retinue_policy.domain.tools.ruleset import Who
from retinue_policy.domain.tools.summaries import shortened, visible
from retinue_policy.operations.tools import Call

ANSWER_SIZE_MAX_BYTES = 16 * 1024
"""Of an answer, which is a word and a sentence; a longer one is none."""

REASON_LENGTH_MAX = 500
"""Characters of a reason that the model is told."""

CONNECTIONS_MAX = 64
"""Questions at once; a further one waits, within its time."""

DENIED = "The operator's check does not allow this call."
UNANSWERED = "The operator's check of each call did not answer, so it may not be made. Try again later."

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_asked = counter("tool_call_checks", "Questions to the operator's endpoint about a tool call, by answer.", ["outcome"])


class _Answer(msgspec.Struct):
    decision: Literal["allow", "deny"]
    reason: str = ""


class Endpoint:
    """Asks an endpoint. Implements operations.tools.Vetoing.

    One POST a call, never repeated: `tenant_id`, `agent_id`, `principal`, `kind`, `runtime`, `tool`, `arguments` and
    `effect`, which is what the rules have said ("allow" or "ask"). The answer is `{"decision": "allow" | "deny",
    "reason": "…"}` with status 200; anything else, and none in time, is a denial.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        # Proxies of the environment are not used: the endpoint is the operator's own.
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "Retinue-Policy", "accept-encoding": "identity"},
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.close()

    async def veto(self, who: Who, call: Call, effect: Effect) -> str:
        document = {
            "tenant_id": who.tenant_id,
            "agent_id": who.agent_id,
            "principal": who.principal,
            "kind": who.kind,
            "runtime": who.runtime,
            "tool": call.tool,
            "arguments": call.arguments,
            "effect": effect,
        }
        try:
            answer = await self._ask(msgspec.json.encode(document))
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a timeout is an OSError, bad JSON a ValueError
            log.warning("the check of tool calls did not answer", tool=call.tool, detail=type(error).__name__)
            _asked.labels("none").inc()
            return UNANSWERED
        _asked.labels(answer.decision).inc()
        if answer.decision == "allow":
            return ""
        return shortened(visible(answer.reason.strip()), REASON_LENGTH_MAX) or DENIED

    async def _ask(self, body: bytes) -> _Answer:
        headers = {"content-type": "application/json"}
        trace = telemetry.traceparent()
        if trace:
            headers["traceparent"] = trace
        timeout = aiohttp.ClientTimeout(total=deadlines.timeout_s(self._timeout_s))
        async with self._http.post(
            self._url, data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            said = bytearray()
            async for piece in response.content.iter_any():
                said += piece
                if len(said) > ANSWER_SIZE_MAX_BYTES:
                    raise ValueError("too long")
        return msgspec.json.decode(said, type=_Answer)
