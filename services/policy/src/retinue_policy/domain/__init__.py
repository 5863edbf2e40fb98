"""Nouns and rules of policy; pure."""
