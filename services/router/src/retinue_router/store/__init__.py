"""Rows of the router's schema, by noun. No exception of the driver leaves this package."""
