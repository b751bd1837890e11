"""What decides whether anything is timed finds what is wrong, and takes rounding for what it is."""

import math

import torch

from benchmarks.gpu.correctness import checked
from benchmarks.gpu.row_error import row_error


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 512, generator=torch.Generator().manual_seed(count))


def test_rounding_counts_alike_in_few_rows_and_in_many() -> None:
    few, many = (row_error(rows(count).bfloat16(), rows(count)) for count in (4, 4000))
    assert 1e-3 < few <= many < 1.5 * few


def test_one_wrong_row_among_thousands_and_one_wrong_head_of_a_row_are_found() -> None:
    want = rows(4000)
    swapped, silent = want.clone(), want.clone()
    swapped[1234] = want[1235]
    silent[7, :16] = 0
    assert row_error(want, want) == 0
    assert row_error(swapped, want) > 1
    assert row_error(silent, want) > 0.1


def test_what_is_no_number_is_not_right() -> None:
    got = rows(3)
    got[1, 2] = math.nan
    assert checked("a case", 0.5, lambda: row_error(got, rows(3)))["right"] is False


def test_a_case_that_cannot_be_measured_is_not_right_and_says_why() -> None:
    def fail() -> float:
        raise RuntimeError("no such kernel\nmore about it")

    assert checked("a case", 0.5, fail) == {"case": "a case", "right": False, "error": "RuntimeError: no such kernel"}
    assert checked("a case", 0.5, lambda: 0.1) == {"case": "a case", "error": 0.1, "limit": 0.5, "right": True}
