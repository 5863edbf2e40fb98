"""Accepts messages; owns contacts, sessions, runs and their event log. Its worker executes the runs."""
