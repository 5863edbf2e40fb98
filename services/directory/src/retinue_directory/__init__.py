"""Knows who exists: tenants, users, agents, signing keys, tokens and which of them are revoked."""
