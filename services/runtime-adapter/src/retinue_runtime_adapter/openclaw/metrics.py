"""Numbers about gateways. No label names an instance or a tenant: what is told is sums, counts and the largest."""

from retinue_kit.metrics import counter, gauge, histogram

STATES = ("pending", "ready", "free", "error")

instances = gauge("openclaw_instances", "Gateways that there are.", ["isolation", "state"])
"""States: pending, ready, error; a cell that waits for its tenant is `free`."""

runs_waiting = gauge("openclaw_runs_waiting", "Runs that wait to be admitted to a gateway.")
runs_admitted = gauge("openclaw_runs_admitted", "Runs in a gateway.")
memory_sum = gauge("openclaw_memory_bytes", "Memory of all gateways together.")
memory_max = gauge("openclaw_memory_max_bytes", "Memory of the largest gateway.")

cold_starts = counter(
    "openclaw_cold_starts", "Tenants for whom no instance or agent was ready, and one was made.", ["isolation"]
)
restarts = counter("openclaw_restarts", "Gateways that were given up.", ["reason"])
"""Reasons: died, silent, memory, lag, start (it never served)."""

credentials_renewed = counter("openclaw_credentials_renewed", "Agents whose credential was replaced by another.")

start_seconds = histogram(
    "openclaw_start_seconds", "Time for a gateway to serve.", [2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120]
)
claim_seconds = histogram(
    "openclaw_claim_seconds",
    "Time for a tenant without an agent to have one.",
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
)
