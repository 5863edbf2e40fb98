"""The files in which an operator writes rules: read whole, named by the digest of what they say.

Those for tools and those for runtimes stand alone: a slip in one keeps nobody from rolling back by the other.
"""

import hashlib
from importlib import resources
from pathlib import Path

from retinue_policy import runtimes_toml, toml_rules
from retinue_policy.cedar import CedarRules
from retinue_policy.domain.preferences import RuntimeRules
from retinue_policy.operations.rulebook import BadRulesError
from retinue_policy.operations.tools import Rules

FILES_MAX = 64
FILES_SIZE_MAX_BYTES = 1024 * 1024
"""Together. A section of a tenant takes some 100 bytes."""

TOML = "tools.toml"
CEDAR = ".cedar"
SCHEMA = "tools.cedarschema"
"""Says what policy tells Cedar, so that it comes with the program, whatever the operator's folder holds."""

DIGEST_LENGTH = 12
"""Characters of a digest that name rules."""


class RuleFiles:
    """Implements operations.rulebook.Source: rules for tools of a folder, or those that come with the program."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._schema = bundled(SCHEMA)

    def read(self) -> dict[str, str]:
        """Read the files, by name. Raises BadRulesError if one is missing, cannot be read, or is too large."""
        if self._folder is None:
            return {name: bundled(name) for name in (TOML, "tools.cedar")}
        try:
            found = sorted(path for path in self._folder.iterdir() if path.suffix == CEDAR or path.name == TOML)
            if len(found) > FILES_MAX:
                raise BadRulesError(f"more than {FILES_MAX} files")
            return _read(found, FILES_SIZE_MAX_BYTES)
        except OSError as error:
            raise BadRulesError(f"{error.filename}: {error.strerror}") from None

    def load(self, texts: dict[str, str]) -> Rules:
        """Make rules of what was read. Raises BadRulesError."""
        if TOML not in texts:
            raise BadRulesError(f"{TOML} is missing")
        policies = {name: text for name, text in texts.items() if name != TOML}
        if not policies:
            raise BadRulesError(f"there is no file of the name *{CEDAR}")
        return Rules(toml_rules.parse(texts[TOML]), CedarRules(policies, self._schema), name_of(texts))


class RuntimeFile:
    """Implements operations.rulebook.Source: rules for runtimes of a folder, or those that come with the program where
    it has none. A file that was there once is missed."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / runtimes_toml.NAME if folder else None
        self._was_there = False

    def read(self) -> dict[str, str]:
        """Read the file. Raises BadRulesError if it cannot be read, is too large, or is there no more."""
        if self._path is None:
            return {runtimes_toml.NAME: bundled(runtimes_toml.NAME)}
        try:
            texts = _read([self._path], runtimes_toml.SIZE_MAX_BYTES)
        except FileNotFoundError:
            if self._was_there:
                raise BadRulesError(f"{runtimes_toml.NAME} is missing") from None
            return {runtimes_toml.NAME: bundled(runtimes_toml.NAME)}
        except OSError as error:
            raise BadRulesError(f"{error.filename}: {error.strerror}") from None
        self._was_there = True
        return texts

    def load(self, texts: dict[str, str]) -> RuntimeRules:
        """Make rules of what was read. Raises BadRulesError."""
        return runtimes_toml.parse(texts[runtimes_toml.NAME], name_of(texts))


def name_of(texts: dict[str, str]) -> str:
    """Name rules by what they say."""
    digest = hashlib.sha256()
    for name, text in sorted(texts.items()):
        for part in (name, text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8) + encoded)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _read(paths: list[Path], size_max_bytes: int) -> dict[str, str]:
    texts: dict[str, str] = {}
    left = size_max_bytes
    for path in paths:
        with path.open("rb") as file:
            content = file.read(left + 1)
        left -= len(content)
        if left < 0:
            raise BadRulesError(f"more than {size_max_bytes} bytes in all")
        try:
            texts[path.name] = content.decode()
        except UnicodeDecodeError:
            raise BadRulesError(f"{path.name} is not UTF-8") from None
    return texts


def bundled(name: str) -> str:
    """Read a file that comes with the program."""
    return resources.files("retinue_policy").joinpath("bundled", name).read_text("utf-8")
