"""One module per command; what a command alone needs is imported when it runs, so that each starts fast."""
