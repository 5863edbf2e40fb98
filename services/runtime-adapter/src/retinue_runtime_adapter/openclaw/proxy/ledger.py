"""Who may call a model, on whose behalf, and what it came to."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from retinue_kit import telemetry
from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.wire import Usage, counted
from retinue_runtime_adapter.openclaw.ports import Meter
from retinue_runtime_adapter.openclaw.prompt import Message
from retinue_runtime_adapter.openclaw.proxy.credentials import Credentials, Key

CALLS_MAX = 8
"""Calls of one run at once. A turn makes one at a time; a few more leave room for what a gateway does beside it."""

CALL_TIME_S = 3600.0
"""Longest call. A run's end comes before; this is for a run that has none."""


class CrowdedError(Exception):
    """A run has too many calls under way."""


class Run:
    """A run whose model calls are let through."""

    def __init__(
        self,
        *,
        run_id: str,
        trace_id: str,
        model: str,
        parameters: dict[str, Any],
        on_reasoning: Callable[[str], None] | None,
        before: Sequence[Message],
        tools: Sequence[str] | None = None,
        preface: str = "",
        on_overflow: Callable[[Trouble], None] | None = None,
    ) -> None:
        self.run_id = run_id
        self.trace_id = trace_id
        self.model = model
        self.parameters = parameters
        self.before = before
        self.tools = tools
        self.preface = preface
        self.meter = Meter()
        self.traceparent = telemetry.traceparent()
        self._on_reasoning = on_reasoning
        self._on_overflow = on_overflow
        self._attempts: dict[Attempt, Callable[[], None]] = {}
        self._cost = 0.0

    def hear(self, thought: str, trace_id: str) -> None:
        """Tell what the model thinks, in calls that are surely this run's: another's thoughts are nobody else's."""
        if self._on_reasoning is not None and (not self.trace_id or trace_id == self.trace_id):
            self._on_reasoning(thought)

    def failed(self, trouble: Trouble, trace_id: str) -> None:
        """Keep a call's trouble. Of an overflow whoever runs the run is told, where the call is surely this run's."""
        self.meter.trouble = trouble
        ours = not self.trace_id or trace_id == self.trace_id
        if trouble.reason is Reason.MODEL_CONTEXT_OVERFLOW and self._on_overflow is not None and ours:
            self._on_overflow(trouble)

    def trying(self, model: Model) -> None:
        """Say which model is asked."""
        self.meter.model = model.name

    def count(self, usage: Usage, model: Model) -> None:
        """Add what a call used. A price is per million tokens, and a cost in millionths."""
        read, written = counted(usage.prompt_tokens), counted(usage.completion_tokens)
        self._cost += read * model.input_price + written * model.output_price
        self.meter.input_tokens += read
        self.meter.output_tokens += written
        self.meter.cost_micros = round(self._cost)

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Begin a call, which ends with the run. Raises CrowdedError."""
        if len(self._attempts) >= CALLS_MAX:
            raise CrowdedError
        attempt = Attempt(CALL_TIME_S)
        self._attempts[attempt] = _nothing
        self.meter.calls += 1
        try:
            yield attempt
        finally:
            del self._attempts[attempt]

    def at_end(self, attempt: Attempt, settle: Callable[[], None]) -> None:
        """Say what is to be done if the run ends before the call: its meter is read at once."""
        self._attempts[attempt] = settle

    def end(self) -> None:
        """End the calls under way."""
        for attempt, settle in self._attempts.items():
            attempt.abort()
            settle()


class Ledger:
    """Credentials, and the runs and warm-ups under way."""

    def __init__(self) -> None:
        self.credentials = Credentials()
        self._runs: dict[Key, list[Run]] = {}
        self._under_way: set[object] = set()
        self._warm: Counter[Key] = Counter()

    def renewed(self, key: Key, now: float) -> None:
        """The gateway has the next credential; runs under way may go on with the present one."""
        self.credentials.renewed(key, list(self._runs.get(key, ())), now)

    def key(self, credential: str, now: float) -> Key | None:
        """Whose credential it is; None for one that is over."""
        return self.credentials.find(credential, self._under_way, now)

    @contextmanager
    def run(self, key: Key, run: Run) -> Iterator[Meter]:
        """Let a run's calls through."""
        self._runs.setdefault(key, []).append(run)
        self._under_way.add(run)
        try:
            yield run.meter
        finally:
            self._under_way.remove(run)
            self._runs[key].remove(run)
            if not self._runs[key]:
                del self._runs[key]
            run.end()

    @contextmanager
    def warm(self, key: Key) -> Iterator[None]:
        """Answer a tenant's calls here."""
        self._warm[key] += 1
        try:
            yield
        finally:
            self._warm[key] -= 1
            if not self._warm[key]:
                del self._warm[key]

    def is_warming(self, key: Key) -> bool:
        """Whether a warm-up is under way."""
        return key in self._warm

    def find(self, key: Key, trace_id: str) -> Run | None:
        """The run that a call belongs to: that of its trace, else the tenant's only one.

        A call without a run's trace is one that the gateway makes on its own account. Beside several runs it is
        nobody's: a guess could show one contact's words to another. While a warm-up is under way such a call is the
        warm-up's, unless a run has no trace by which to know it.
        """
        runs = self._runs.get(key, ())
        for run in reversed(runs):
            if run.trace_id and run.trace_id == trace_id:
                return run
        if self.is_warming(key):
            return next((run for run in reversed(runs) if not run.trace_id), None)
        return runs[0] if len(runs) == 1 else None


def _nothing() -> None:
    """What there is to settle of a call that nobody has answered yet."""
