"""Nouns and rules of the directory; pure."""
