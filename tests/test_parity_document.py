"""Every test that docs/parity.md names is there, and every row names one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8").splitlines()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_the_document_names_is_there() -> None:
    named = NAMED.findall("\n".join(LINES))
    assert len(named) > 20
    for path, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test


def test_every_row_names_a_test() -> None:
    with_tests = False
    for line in LINES:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            with_tests = False
        elif with_tests and not line.startswith("|---"):
            assert NAMED.fullmatch(cells[-1]) or cells[-1] == "the same", line
        else:
            with_tests = with_tests or cells[-1] == "test"
