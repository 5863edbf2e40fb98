"""The adapter's rules: how an answer is shaped, which credential and model is next, what a trouble means."""
