"""Allowances: calls of a tool that a person has allowed for good."""

ALLOWANCE = "alw"
"""What their ids begin with."""

ALLOWANCES_MAX = 500
"""Allowances of a tenant. Each attempt that may use tools is told all of them, and each call is held against them; who
needs more means a rule, which is policy's."""

ALLOWANCES_SIZE_MAX_BYTES = 256 * 1024
"""Patterns of a tenant, together: they are told with each attempt, in one message with all else that it needs."""
