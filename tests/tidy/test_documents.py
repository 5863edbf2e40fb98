"""What must be written down is: each part's page, each reason, each target."""

import re
from collections.abc import Callable
from pathlib import Path

from retinue.common.v1 import error_reason_pb2
from retinue_kit.errors import CODES, Reason

Matching = Callable[..., dict[str, str]]

QUESTIONS = ["Owns", "Serves", "Stores", "Emits", "Fails how"]
PREFIX = "ERROR_REASON_"


def test_each_services_page_answers_the_five_questions(root: Path) -> None:
    for folder in [*sorted((root / "services").iterdir()), root / "gateway"]:
        page = folder / "README.md"
        assert page.is_file(), f"{page.relative_to(root)} is missing"
        answered = re.findall(rf"^(?:## |\*\*)({'|'.join(QUESTIONS)})", page.read_text(), re.MULTILINE)
        assert answered == QUESTIONS, f"{page.relative_to(root)} answers {answered}"


def test_the_kits_reasons_are_the_contracts() -> None:
    listed = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name
    names = {name.removeprefix(PREFIX) for name in listed} - {"UNSPECIFIED"}
    assert names == set(Reason) == set(CODES)


def test_each_reason_has_one_row_with_its_code(root: Path) -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \|", (root / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((reason, CODES[reason].name) for reason in Reason)


def test_each_target_of_the_makefile_has_help(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    helped = set(re.findall(r"^([a-z-]+):.* ## \S", makefile, re.MULTILINE))
    assert targets - helped == {"prepare"}
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == targets


def test_links_between_documents_lead_somewhere(matching: Matching, root: Path) -> None:
    dead = []
    for path, text in matching(".md").items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in link and not (root / path).parent.joinpath(link).exists():
                dead.append(f"{path}: {link}")
    assert not dead
