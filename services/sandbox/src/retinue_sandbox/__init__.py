"""Runs untrusted work in a box with limits; without a box, nothing."""
