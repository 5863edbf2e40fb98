"""The router's second process: takes runs one at a time per log, fenced by a token, and executes them."""
