"""Which files are begun first where several processes share them: one that is begun last is waited for by all."""

import pytest

FIRST = ("test_sweep.py", "test_supervisor.py", "test_openclaw.py", "test_errors.py", "test_command.py")
"""Longest first. Their tests are few, so by their number alone they would come last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring them forward; what comes by chance otherwise stays so."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
