"""Numbers about bundles."""

from retinue_kit import metrics

bundles = metrics.counter("bundles", "Bundles that were built, checked, told or imported.", ["verb", "outcome"])
"""Outcomes: done, refused."""

build_seconds = metrics.histogram(
    "bundle_build_seconds",
    "Time to build a bundle, with the reading of what it is made from.",
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

redactions = metrics.counter("bundle_redactions", "What was taken out of bundles or had no room in them.", ["rule"])

summaries = metrics.counter("session_summaries", "Summaries of sessions.", ["method"])
"""Methods: model, extract, mixed."""
