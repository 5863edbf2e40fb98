"""Which calls of tools policy has allowed, while they are open: beside them a box does nothing for a gateway.

A gateway says which tool its model calls before it begins; the scripts and commands that this comes to it asks for
later, without saying which call they belong to. They are let through while their run has a call open that may have led
to them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest
from retinue_kit import tenancy
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.domain.models import Catalogue
from retinue_runtime_adapter.tools.metrics import label, tool_calls
from retinue_runtime_adapter.tools.ports import Authority, Call, Scope, Verdict

COMMANDS = "exec"
"""The tool whose calls run commands; those of every other one come to scripts of OpenClaw's own."""

CHAT = "chat"
"""What a run is whose request does not say."""

CALLS_MAX = 64
"""Open calls remembered of one attempt: a model asks for a few at once. A gateway is not sure to say how each ended."""

READING = frozenset({"read"})
"""OpenClaw's own tools that change nothing."""

RECORD_TIMEOUT_S = 5.0
"""Time until a run's first call that may change something is recorded: a commit and a call of the worker's, a few
milliseconds. Where the worker has died the call is refused; it was not made."""

Record = Callable[[Call], Awaitable[None]]
"""Returns once it is recorded that a call begins which may change something."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """For whom a tool is called: the attempt that is under way, and the tools that policy offers it."""

    scope: Scope
    tools: frozenset[str] = frozenset()
    open: OrderedDict[str, Call] = field(default_factory=OrderedDict, compare=False)
    """Calls that policy has allowed and that have not ended, by id, the latest last. They are gone with the attempt."""
    record: Record | None = field(default=None, compare=False)
    """Waited for before a call that may change something."""


def identity(
    request: InvokeRequest,
    runtime: str,
    token: int,
    catalogue: Catalogue,
    joined: RunIdentity | None = None,
    record: Record | None = None,
) -> RunIdentity:
    """Say for whom the tools of a run are called, and in whose name: the principal of the call that asks for the run.

    `token` is that of the latest attempt that follows it. `joined` is what a former attempt was known by, if this one
    follows what that one has begun: its calls are still under way, and recorded as before.
    """
    scope = Scope(
        tenant_id=request.tenant_id,
        session_id=request.session_id,
        run_id=request.run_id,
        fencing_token=token,
        runtime=runtime,
        agent_id=request.agent_id,
        contact=request.contact,
        kind=request.kind or CHAT,
        model=catalogue.with_provider(request.model),
        principal=tenancy.current().principal,
        allowed=tuple((allowance.tool, allowance.pattern) for allowance in request.allowances),
        min_isolation=request.box.min_isolation,
        egress=tuple(request.box.egress),
    )
    known = RunIdentity(scope, frozenset(request.tools), record=record)
    return known if joined is None else replace(known, open=joined.open, record=joined.record)


class Permits:
    """Asks policy about calls, and remembers with their attempt those that it allowed until they end."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def ask(self, run: RunIdentity, call: Call, *, changes: bool) -> None:
        """Raise RetinueError(POLICY_DENIED), whose message the model reads, or what kept policy from answering.

        That a call begins which may change something is recorded before this returns, else DEPENDENCY_UNAVAILABLE: the
        run is not asked anew from then on, for the model would call again.
        """
        try:
            await self._ask(run, call)
            if changes and run.record is not None:
                await _recorded(run.record, call)
        except RetinueError:
            tool_calls.labels(label(call.tool), "refused").inc()
            raise

    async def _ask(self, run: RunIdentity, call: Call) -> None:
        if call.tool not in run.tools:
            text = f"This run may not use the tool {call.tool[:64]!r}."
            raise RetinueError(Reason.POLICY_DENIED, text, layer="run", rule="tools")
        verdict = await self._authority.authorize(run.scope, call)
        if verdict.effect != "allow":
            raise RetinueError(Reason.POLICY_DENIED, _refusal(call, verdict), layer=verdict.layer, rule=verdict.rule)

    async def open(self, run: RunIdentity, call: Call) -> None:
        """Ask, and remember the call. Raises as `ask` does."""
        await self.ask(run, call, changes=call.tool not in READING)
        run.open[call.call_id] = Call(call.call_id, call.tool, {})  # arguments may be large, and are of no use any more
        if len(run.open) > CALLS_MAX:
            run.open.popitem(last=False)

    def close(self, run: RunIdentity, call_id: str) -> None:
        """A call has ended; nothing happens if it is not open."""
        run.open.pop(call_id, None)

    def find(self, run: RunIdentity, *, command: bool) -> Call:
        """Find the open call that led to a command, or to a script. Raises RetinueError(POLICY_DENIED).

        Of calls side by side it is the latest that may have; a command's call comes to a script, too, before it.
        """
        commands = [call for call in run.open.values() if call.tool == COMMANDS]
        scripts = [call for call in run.open.values() if call.tool != COMMANDS]
        found = commands if command else scripts or commands
        if not found:
            raise RetinueError(Reason.POLICY_DENIED, "No call that policy has allowed is under way.")
        return found[-1]


async def _recorded(record: Record, call: Call) -> None:
    try:
        async with asyncio.timeout(RECORD_TIMEOUT_S):
            await record(call)
    except TimeoutError:
        text = "The beginning of this call could not be recorded, so it was not made."
        raise RetinueError(Reason.DEPENDENCY_UNAVAILABLE, text, dependency="worker") from None


def _refusal(call: Call, verdict: Verdict) -> str:
    if verdict.effect == "ask":
        text = f"This call of {call.tool} needs a person's approval, and a run of this kind cannot wait for one."
        return f"{text} {verdict.reason}".rstrip()
    return verdict.reason or f"Policy does not allow this call of {call.tool}."
