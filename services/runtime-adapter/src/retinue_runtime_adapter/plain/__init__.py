"""Plain calls of models, without an agent: a summary, vectors."""
