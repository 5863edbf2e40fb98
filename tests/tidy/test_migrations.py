"""Migrations that were released stay as they are: databases exist that have seen them."""

import hashlib
from pathlib import Path

LANDED = {
    "directory/0001_pre_directory.sql": "426db2ee3c4313c86f5e1b2d14b7189576c2f7857b7ce9a22f4a06e61d6bfaa1",
    "router/0001_pre_tables.sql": "b8c830e41886348dbb43f6a70642fe1575e755bc838f357a28d797bc0b629656",
    "router/0002_pre_submit.sql": "55363395fe9319e3775ff8dd91b0364d5c9095a100f767f4f3ff99e0f0fe0cb0",
    "router/0003_pre_lease.sql": "b65420114922cd598eb6894fd276f6bd4d5110ebbb8e638c37426de6878ab4a5",
    "router/0004_pre_projection.sql": "8435f2fb8e0e0195f9766de10967091a4b6f8e15aa82387a3a2d3b0d2bda97d7",
}
"""SHA-256 of each; one is added with its release, and none is ever changed. What is to be mended there is mended by a
further migration."""


def migrations(root: Path) -> dict[str, Path]:
    """Find all migrations of all services."""
    found = sorted((root / "services").glob("*/src/*/migrations/*.sql"))
    return {f"{path.relative_to(root / 'services').parts[0]}/{path.name}": path for path in found}


def test_released_migrations_are_unchanged(root: Path) -> None:
    known = migrations(root)
    assert {name: hashlib.sha256(known[name].read_bytes()).hexdigest() for name in LANDED} == LANDED


def test_migrations_of_a_service_have_numbers_of_their_own(root: Path) -> None:
    numbers = [name.partition("_")[0] for name in migrations(root)]
    assert len(numbers) == len(set(numbers))
