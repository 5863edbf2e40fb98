"""The crash-point sweep: people talk to a real mesh, parts of it die where it hurts most, and every promise is checked.

`make chaos` runs it. `points` knows where processes can be made to die, `faults` has them die, `workload`, `operators`
and `boxes` talk and `watching` listens, both as the public contract asks of clients, `history` is what they saw,
`checks` judges it knowing nothing else, `sweep` does one seed after another, `report` sums up.
"""
