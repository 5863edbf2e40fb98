"""What a sweep came to: points, kills, recoveries, broken promises."""

from collections import Counter, defaultdict

from harness.sweep import Outcome


class Report:
    """Sums outcomes up."""

    def __init__(self, declared: list[str]) -> None:
        self._declared = declared
        self._outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Take in a seed."""
        self._outcomes.append(outcome)

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return sum(blow.kills for outcome in self._outcomes for blow in outcome.blows)

    @property
    def failed(self) -> list[Outcome]:
        """Seeds that broke a promise."""
        return [outcome for outcome in self._outcomes if outcome.violations]

    def killed_at(self) -> Counter[str]:
        """How often a process was killed at each point."""
        return Counter(blow.point for o in self._outcomes for blow in o.blows if blow.kills)

    def unproven(self, hits: Counter[str]) -> list[str]:
        """Points that were never reached, or at which nothing ever died."""
        killed = self.killed_at()
        return [point for point in self._declared if not hits[point] or not killed[point]]

    def points(self, hits: Counter[str]) -> str:
        """A table of points."""
        killed = self.killed_at()
        stopped = Counter(blow.point for o in self._outcomes for blow in o.blows if not blow.kills)
        lines = [f"{'point':38} {'hits':>8} {'kills':>6} {'stops':>6}"]
        lines += [f"{point:38} {hits[point]:8} {killed[point]:6} {stopped[point]:6}" for point in self._declared]
        return "\n".join(lines)

    def recoveries(self) -> str:
        """A table of times from a fault to the next event that the watchers of what it hit were told, in seconds."""
        found: dict[str, list[float]] = defaultdict(list)
        for outcome in self._outcomes:
            for blow in outcome.blows:
                if blow.recovery_s is not None:
                    found[blow.kind].append(blow.recovery_s)
        lines = [f"{'fault':28} {'times':>6} {'p50':>6} {'p95':>6} {'max':>6}"]
        for kind, times in sorted(found.items()):
            times.sort()
            p50, p95 = (times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.95))
            lines.append(f"{kind:28} {len(times):6} {p50:6.2f} {p95:6.2f} {times[-1]:6.2f}")
        return "\n".join(lines)

    def summary(self) -> str:
        """One line."""
        runs = sum(outcome.runs for outcome in self._outcomes)
        seconds = sum(outcome.seconds for outcome in self._outcomes)
        broken = sum(len(outcome.violations) for outcome in self._outcomes)
        return (
            f"{len(self._outcomes)} seeds, {self.kills} kills, {runs} runs in {seconds / 60:.1f} min: "
            f"{broken} violations in {len(self.failed)} seeds"
        )


def line(outcome: Outcome) -> str:
    """What to say of a seed while the sweep goes on."""
    blows = [
        blow.words + (f" {blow.recovery_s:.2f} s" if blow.recovery_s is not None else "") for blow in outcome.blows
    ]
    words = f"seed {outcome.seed:4}  {outcome.seconds:5.1f} s  {outcome.runs:3} runs  " + " · ".join(blows)
    if not outcome.violations:
        return words
    broken = [f"    {violation}" for violation in outcome.violations[:20]]
    again = f'    history: {outcome.file}; again: make chaos ARGS="--seed {outcome.seed}"'
    return "\n".join([words, *broken, again])
