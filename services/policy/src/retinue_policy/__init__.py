"""Decides what may happen and with which runtime, and says why."""
