"""Which calls of tools policy has allowed, while they are open: beside them a box does nothing for a gateway.

A gateway says which tool its model calls before it begins; the scripts and commands that this comes to it asks for
later, without saying which call they belong to. They are let through while their run has a call open that may have led
to them.
"""

from collections import OrderedDict
from dataclasses import dataclass

from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.tools.metrics import label, tool_calls
from retinue_runtime_adapter.tools.ports import Authority, Call, Scope, Verdict

COMMANDS = "exec"
"""The tool whose calls run commands; those of every other one come to scripts of OpenClaw's own."""

CHAT = "chat"
"""What a run is whose request does not say."""

RUNS_MAX = 4_096
"""Runs whose calls are remembered at once; the one that called last is forgotten last."""

CALLS_MAX = 64
"""Open calls remembered of one run: a model asks for a few at once. A gateway is not sure to say how each ended."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """For whom a tool is called: the attempt that is under way, and the tools that policy offers it."""

    scope: Scope
    tools: frozenset[str] = frozenset()


def identity(request: InvokeRequest, runtime: str, token: int) -> RunIdentity:
    """Say for whom the tools of a run are called. `token` is that of the latest attempt that follows it."""
    scope = Scope(
        tenant_id=request.tenant_id,
        session_id=request.session_id,
        run_id=request.run_id,
        fencing_token=token,
        runtime=runtime,
        agent_id=request.agent_id,
        contact=request.contact,
        kind=request.kind or CHAT,
        model=request.model,
        allowed=tuple((allowance.tool, allowance.pattern) for allowance in request.allowances),
        min_isolation=request.box.min_isolation,
        egress=tuple(request.box.egress),
    )
    return RunIdentity(scope, frozenset(request.tools))


class Permits:
    """Asks policy about calls, and remembers those that it allowed until they end."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._open: OrderedDict[tuple[str, str], OrderedDict[str, Call]] = OrderedDict()

    async def ask(self, run: RunIdentity, call: Call) -> None:
        """Raise RetinueError(POLICY_DENIED), whose message the model reads, or what kept policy from answering."""
        try:
            await self._ask(run, call)
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
        await self.ask(run, call)
        key = _key(run)
        calls = self._open.setdefault(key, OrderedDict())
        self._open.move_to_end(key)
        calls[call.call_id] = Call(call.call_id, call.tool, {})  # arguments may be large, and are of no use any more
        if len(calls) > CALLS_MAX:
            calls.popitem(last=False)
        if len(self._open) > RUNS_MAX:
            self._open.popitem(last=False)

    def close(self, run: RunIdentity, call_id: str) -> None:
        """A call has ended; nothing happens if it is not open."""
        calls = self._open.get(_key(run), OrderedDict())
        calls.pop(call_id, None)
        if not calls:
            self._open.pop(_key(run), None)

    def find(self, run: RunIdentity, *, command: bool) -> Call:
        """Find the open call that led to a command, or to a script. Raises RetinueError(POLICY_DENIED).

        Of calls side by side it is the latest that may have; a command's call comes to a script, too, before it.
        """
        calls = list(self._open.get(_key(run), OrderedDict()).values())
        commands = [call for call in calls if call.tool == COMMANDS]
        scripts = [call for call in calls if call.tool != COMMANDS]
        found = commands if command else scripts or commands
        if not found:
            raise RetinueError(Reason.POLICY_DENIED, "No call that policy has allowed is under way.")
        return found[-1]


def _key(run: RunIdentity) -> tuple[str, str]:
    return run.scope.tenant_id, run.scope.run_id


def _refusal(call: Call, verdict: Verdict) -> str:
    if verdict.effect == "ask":
        text = f"This call of {call.tool} needs a person's approval, and a run of this kind cannot wait for one."
        return f"{text} {verdict.reason}".rstrip()
    return verdict.reason or f"Policy does not allow this call of {call.tool}."
