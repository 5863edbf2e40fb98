"""The verbs of portability; ports.py says what they need from outside."""
