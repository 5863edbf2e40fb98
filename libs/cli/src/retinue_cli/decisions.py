"""What policy has decided: why a run got its runtime, and what other rules would have given it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from retinue.policy.v1 import policy_service_pb2 as policy
from retinue.policy.v1 import policy_service_pb2_grpc as policy_grpc
from retinue.router.v1 import decision_service_pb2 as router
from retinue.router.v1 import decision_service_pb2_grpc as router_grpc

from retinue_cli.failures import CommandError
from retinue_cli.mesh import PAGE_SIZE, Mesh, call

RULES_SIZE_MAX_BYTES = 1_000_000
"""What the contract takes."""

REPLAYED_MAX = 100_000
"""Decisions that one command replays: some minutes."""

NOWHERE = "(refused)"
"""Stands for the runtime of a run that is refused one."""

COLUMNS = ("run", "tenant", "was", "would be", "by rule", "instead of", "why")
"""Of the table of differences."""


@dataclass
class Replayed:
    """What other rules come to: how many decisions stay, how many cannot be told, which ones differ, and how."""

    same_count: int = 0
    skipped_count: int = 0
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    differences: list[policy.DecisionDifference] = field(default_factory=list)
    stopped: bool = False

    @property
    def differing_count(self) -> int:
        """How many differ, also those that are not kept."""
        return self.changes.total()

    @property
    def count(self) -> int:
        """How many decisions were looked at."""
        return self.same_count + self.skipped_count + self.differing_count

    def take(self, answer: policy.ReplayDecisionsResponse, kept_max: int) -> None:
        """Add what a page came to; so many differences are kept to be shown."""
        self.same_count += answer.same_count
        self.skipped_count += answer.skipped_count
        for each in answer.differences:
            self.changes[_way(each)] += 1
        self.differences.extend(answer.differences[: max(0, kept_max - len(self.differences))])

    def plain(self) -> dict[str, Any]:
        """Make an object for programs."""
        from google.protobuf.json_format import MessageToDict

        return {
            "count": self.count,
            "same_count": self.same_count,
            "skipped_count": self.skipped_count,
            "differing_count": self.differing_count,
            "stopped": self.stopped,
            "changes": [{"from": old, "to": new, "count": count} for (old, new), count in self.changes.most_common()],
            "differences": [
                MessageToDict(each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
                for each in self.differences
            ],
        }

    def told(self) -> Iterator[str]:
        """Sum it up in lines."""
        noun = "decision" if self.count == 1 else "decisions"
        yield f"{self.count} {noun}: {self.same_count} the same, {self.differing_count} would differ."
        for (old, new), count in self.changes.most_common():
            yield f"  {count} {old} → {new}"
        if self.differing_count > len(self.differences):
            yield f"Of those that would differ, {len(self.differences)} are shown: --count says how many."
        if self.skipped_count:
            yield f"{self.skipped_count} cannot be replayed: another release has stored them."
        if self.stopped:
            yield f"There are more: only the first {self.count} were replayed. Say a later --since, or a --tenant."


class Decisions:
    """The decisions of all tenants, by the mesh's own sockets."""

    def __init__(self, mesh: Mesh) -> None:
        router_channel: Any = mesh.channel("router")
        policy_channel: Any = mesh.channel("policy")
        self._router: Any = router_grpc.DecisionServiceStub(router_channel)
        self._policy: Any = policy_grpc.PolicyServiceStub(policy_channel)

    def check(self, rules: str) -> None:
        """Have rules read. CommandError if they cannot be followed."""
        self._replayed(rules, [])

    def replay(
        self, rules: str, since_s: int, tenant_id: str, kept_max: int, replayed_max: int = REPLAYED_MAX
    ) -> Replayed:
        """Decide anew what was decided in the last seconds, to the end of the page with the last that may be replayed;
        of one tenant where given."""
        request = router.ListDecisionsRequest(tenant_id=tenant_id, page_size=PAGE_SIZE)
        request.since.FromDatetime(datetime.now(UTC) - timedelta(seconds=since_s))
        replayed = Replayed()
        while True:
            page: router.ListDecisionsResponse = call(self._router.ListDecisions, request)
            replayed.take(self._replayed(rules, page.decisions), kept_max)
            if not page.next_page_token:
                return replayed
            if replayed.count >= replayed_max:
                replayed.stopped = True
                return replayed
            request.page_token = page.next_page_token

    def _replayed(self, rules: str, stored: Any) -> policy.ReplayDecisionsResponse:
        request = policy.ReplayDecisionsRequest(rules_toml=rules)
        for each in stored:
            request.decisions.add(tenant_id=each.tenant_id, run_id=each.run_id, decision=each.decision)
        answer: policy.ReplayDecisionsResponse = call(self._policy.ReplayDecisions, request)
        return answer


def read_rules(path: Path) -> str:
    """Read a file of rules. CommandError if it cannot be read, is no text, or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(RULES_SIZE_MAX_BYTES + 1)
        if len(content) > RULES_SIZE_MAX_BYTES:
            raise CommandError(f"{path} has more than {RULES_SIZE_MAX_BYTES} bytes.")
        return content.decode()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8.") from None


def _way(difference: policy.DecisionDifference) -> tuple[str, str]:
    return difference.former_runtime or NOWHERE, difference.runtime or NOWHERE


def line_of(difference: policy.DecisionDifference) -> tuple[str, ...]:
    """Lay a difference out as a line of the table."""
    old, new = _way(difference)
    why = f"{difference.reason} ({difference.isolation})" if difference.isolation else difference.reason
    return difference.run_id, difference.tenant_id, old, new, difference.rule, difference.former_rule, why


def facts_of(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lay out what a decision was made on, a line a fact; what does not apply is passed over."""
    for name, value in snapshot.items():
        told = _told(value)
        if told:
            yield name, told


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}"
    return "" if value is None else str(value)
