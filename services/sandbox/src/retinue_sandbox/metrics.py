"""What the sandbox counts of itself."""

from retinue_kit import metrics

executions = metrics.counter(
    "sandbox_executions", "Executions that ended, by what was run and how it ended.", ["kind", "outcome"]
)
"""Kinds: command, python. Outcomes: those of ports.Outcome, and "lost" where the box ended under it."""

execution_seconds = metrics.histogram(
    "sandbox_execution_seconds",
    "Time from an execution's start to its end.",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

boxes = metrics.gauge("sandbox_boxes", "Boxes that are open now.")

box_open_seconds = metrics.histogram(
    "sandbox_box_open_seconds", "Time to open a box.", (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
)

boxes_taken = metrics.counter("sandbox_boxes_taken", "Boxes that were needed, by where they came from.", ["from"])
"""From: spare, one that had been made ahead; made, for the purpose."""

spare_boxes = metrics.gauge("sandbox_spare_boxes", "Boxes that were made ahead and wait to be needed.")

boxes_ended = metrics.counter("sandbox_boxes_ended", "Boxes that ended, by the cause.", ["cause"])
"""Causes: closed, idle, lost, replaced, one_shot, drain."""

available = metrics.gauge("sandbox_available", "1 if the last self-test found a box that holds.")

audit_failures = metrics.counter("sandbox_audit_failures", "Records that could not be written to the audit's file.")
