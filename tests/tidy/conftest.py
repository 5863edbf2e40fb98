"""The repository's own files, as fixtures for the tests of its style."""

from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BUILT = {".git", ".venv", ".build", ".retinue", "__pycache__", "node_modules"}
"""Folders that git does not keep, with whatever is in them."""


def is_ours(path: Path) -> bool:
    """Say whether a path is written here, and neither built nor taken over from others."""
    parts = path.relative_to(ROOT).parts
    built = any(part in BUILT or part.endswith((".egg-info", "_cache")) or part == ".hypothesis" for part in parts)
    return not (built or parts[0] == "third_party" or parts[:2] == ("proto", "gen"))


LOCKS = {"uv.lock", "package-lock.json"}
"""Written by programs, and full of digests in which any word may stand."""


@pytest.fixture(scope="session")
def root() -> Path:
    """Find the repository."""
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """List every file that is written here."""
    found: list[Path] = []
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if not is_ours(path):
                continue
            if path.is_dir():
                folders.append(path)
            elif path.is_file():
                found.append(path)
    return found


@pytest.fixture(scope="session")
def texts(files: list[Path]) -> dict[str, str]:
    """Read every text file that is written here, by its path from the repository's root."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in files
        if path.suffix not in (".binpb", ".bpf") and path.name not in LOCKS
    }


@pytest.fixture(scope="session")
def matching(texts: dict[str, str]) -> Callable[..., dict[str, str]]:
    """Answer a chooser of texts by the end of their paths."""

    def choose(*ends: str) -> dict[str, str]:
        return {path: text for path, text in texts.items() if path.endswith(ends)}

    return choose
