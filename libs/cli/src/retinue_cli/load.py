"""What `retinue status` says of the mesh's load: what waits, what was set aside, which breakers are not closed."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from retinue_cli.failures import CommandError
from retinue_cli.state import State
from retinue_cli.tables import print_table, time_of

if TYPE_CHECKING:
    from retinue.policy.v1.policy_service_pb2 import ListBreakersResponse
    from retinue.router.v1.load_pb2 import GetLoadResponse

    from retinue_cli.mesh import Mesh


@dataclass
class Load:
    """What was learnt; who could not be asked is among the troubles."""

    queues: list[dict[str, Any]] | None = None
    dead_letters: int | None = None
    breakers: list[dict[str, Any]] | None = None
    breaker_count: int = 0
    troubles: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As an object for programs; null is what could not be learnt."""
        return {
            "queues": self.queues,
            "dead_letter_count": self.dead_letters,
            "breakers": self.breakers,
            "breaker_count": self.breaker_count if self.breakers is not None else None,
        }


def read(state: State) -> Load:
    """Ask router and policy; one that does not answer leaves a gap."""
    from retinue_cli.mesh import Mesh

    load = Load()
    with Mesh(state) as mesh:
        try:
            _take_queues(load, mesh.load())
        except CommandError as error:
            load.troubles.append(f"load: {error}")
        try:
            _take_breakers(load, mesh, mesh.breakers())
        except CommandError as error:
            load.troubles.append(f"breakers: {error}")
    return load


def _take_queues(load: Load, answer: "GetLoadResponse") -> None:
    if not answer.HasField("count_time"):
        load.troubles.append("load: not counted yet")
        return
    load.dead_letters = answer.dead_letter_count
    load.queues = [
        {
            "class": queue.queue_class,
            "waiting": queue.waiting_count,
            "oldest_wait_s": queue.oldest_wait.ToMilliseconds() / 1000,
            "later": queue.later_count,
        }
        for queue in answer.queues
    ]


def _take_breakers(load: Load, mesh: "Mesh", answer: "ListBreakersResponse") -> None:
    load.breaker_count = answer.total_count
    load.breakers = [
        {
            "runtime": breaker.runtime,
            "tenant_id": breaker.tenant_id or None,
            "tenant": mesh.name_of(breaker.tenant_id) if breaker.tenant_id else None,
            "state": breaker.state,
            "open_time": time_of(breaker, "open_time"),
            "probe_time": time_of(breaker, "probe_time"),
            "open_count": breaker.open_count,
        }
        for breaker in answer.breakers
    ]


def show(load: Load, now: datetime | None = None) -> None:
    """Print it for people: a line a queue, a row a breaker that is not closed."""
    for queue in load.queues or []:
        oldest = f", the first for {queue['oldest_wait_s']:.1f} s" if queue["waiting"] else ""
        later = f", {queue['later']} for later" if queue["later"] else ""
        typer.echo(f"queue {queue['class']}: {queue['waiting']} waiting{oldest}{later}")
    if load.dead_letters is not None:
        hint = " (retinue runs dead)" if load.dead_letters else ""
        typer.echo(f"dead letters: {load.dead_letters}{hint}")
    if load.breakers is not None and not load.breakers:
        typer.echo("breakers: all closed")
    elif load.breakers:
        instant = now or datetime.now(UTC)
        lines = [
            (
                breaker["runtime"],
                breaker["tenant"] or "all tenants",
                breaker["state"],
                f"{_seconds(breaker['open_time'], instant, before=True)} s ago",
                f"in {_seconds(breaker['probe_time'], instant, before=False)} s"
                if breaker["state"] == "open"
                else "now",
            )
            for breaker in load.breakers
        ]
        print_table(("breaker", "tenant", "state", "since", "next probe"), lines)
        more = load.breaker_count - len(load.breakers)
        if more > 0:
            typer.echo(f"… and {more} more breakers")
    for trouble in load.troubles:
        typer.echo(trouble)


def _seconds(text: str, now: datetime, *, before: bool) -> int:
    away_s = (datetime.fromisoformat(text) - now).total_seconds()
    return max(0, math.floor(-away_s) if before else math.ceil(away_s))
