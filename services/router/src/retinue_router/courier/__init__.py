"""Sends what lies in the outbox. It speaks to strangers' servers, so it is a process of its own with no other right."""
