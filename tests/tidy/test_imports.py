"""Rules and nouns import the standard library and what is as pure as it in the kit; import-linter holds the rest."""

import ast
import sys
from collections.abc import Callable

KIT = {"retinue_kit.errors", "retinue_kit.ids", "retinue_kit.clock", "retinue_kit.tokens"}

EXCEPTIONS = {
    # The public form of an event is the bus's own, so that what is told and what is kept cannot differ.
    "services/router/src/retinue_router/domain/events.py": {"msgspec", "retinue_kit.streams"},
}


def imported(source: str) -> set[str]:
    """Name the modules that a source text imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            plain = node.module != "retinue_kit"
            names.update({node.module} if plain else {f"retinue_kit.{alias.name}" for alias in node.names})
    return names


def is_allowed(path: str, name: str) -> bool:
    """Say whether a module of a domain may import another."""
    own = path.split("/src/")[1].split("/")[0] + ".domain"
    known = name in KIT or name in EXCEPTIONS.get(path, set()) or name.startswith(own)
    return known or name.split(".")[0] in sys.stdlib_module_names


def test_domains_import_only_the_standard_library_and_errors(matching: Callable[..., dict[str, str]]) -> None:
    domains = {path: text for path, text in matching(".py").items() if "/domain/" in path and "/src/" in path}
    assert domains
    outside = {(path, name) for path, text in domains.items() for name in imported(text) if not is_allowed(path, name)}
    assert not outside


def test_a_domain_that_asks_a_database_is_seen() -> None:
    path = "services/router/src/retinue_router/domain/runs.py"
    names = imported("import asyncpg\nfrom retinue_kit import errors, postgres\nfrom retinue_router.store import x")
    assert {name for name in names if not is_allowed(path, name)} == {
        "asyncpg",
        "retinue_kit.postgres",
        "retinue_router.store",
    }
