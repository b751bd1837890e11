"""Every test that a document of what is held by tests names is there, and every row names one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["docs/parity.md", "docs/faults.md", "SECURITY.md"]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
CELL = re.compile(rf"{NAMED.pattern}(, {NAMED.pattern})*")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_the_document_names_is_there(document: str) -> None:
    named = NAMED.findall((ROOT / document).read_text(encoding="utf-8"))
    assert len(named) > 20
    for path, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_row_names_a_test(document: str) -> None:
    with_tests = False
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            with_tests = False
        elif with_tests and not line.startswith("|---"):
            assert CELL.fullmatch(cells[-1]) or cells[-1] == "the same", line
        else:
            with_tests = with_tests or cells[-1] == "test"
