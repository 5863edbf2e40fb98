"""A short sweep of crash points: whatever is killed, no promise is broken. `make chaos` does the long one."""

import itertools

import pytest
from harness.points import declared
from harness.report import Report, line
from harness.stage import raised
from harness.sweep import sweep

KILLS = 40
SEEDS_MAX = 12
"""Each kills six processes or more; with fewer, points are not reached any more."""

SHORT_LEASES = ("worker.lease_s=1.2", "worker.renew_s=0.4")
"""Dead workers are noticed sooner than by default, so that there is time for more of them."""


@pytest.mark.timeout(600)
async def test_whatever_is_killed_no_promise_is_broken():
    report = Report(declared())
    with raised(SHORT_LEASES) as stage:
        async for outcome in sweep(stage, itertools.takewhile(lambda _: report.kills < KILLS, range(1, SEEDS_MAX + 1))):
            report.add(outcome)
            assert not outcome.violations, line(outcome)
    assert report.kills >= KILLS, report.summary()
