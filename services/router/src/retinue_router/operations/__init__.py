"""The verbs: what a call does, in order, with its rules asked from the domain."""
