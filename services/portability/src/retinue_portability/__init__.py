"""Carries a session's context from one runtime into another, whole."""
