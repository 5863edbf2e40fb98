"""The verbs of policy; each module says what it needs from outside."""
