"""Where packed weights lie."""

import re
from pathlib import Path

import pytest
import torch

from common.native.weights import HUGE_PAGE, on_huge_pages


@pytest.mark.parametrize("size", [HUGE_PAGE // 8, 393_216, HUGE_PAGE // 4, 917_504, 1_835_008])
def test_what_half_fills_a_huge_page_lies_on_whole_ones(size: int) -> None:
    """From where one begins to where one ends, in one mapping: only then is no part of it on small ones."""
    weights = on_huge_pages(size, torch.float32)
    first = weights.data_ptr()
    last = first + -(-4 * size // HUGE_PAGE) * HUGE_PAGE
    assert first % HUGE_PAGE == 0
    assert any(low <= first and last <= high for low, high in _mappings())
    assert weights.shape == (size,)
    assert not weights.any()


def test_small_ones_take_no_more_than_they_need() -> None:
    """Or the smallest models would take many times their memory."""
    before = _resident()
    some = [on_huge_pages(HUGE_PAGE // 16, torch.float32) for _ in range(32)]
    for weights in some:
        weights.fill_(1)
    assert _resident() - before < 32 * HUGE_PAGE / 2


def _mappings() -> list[tuple[int, int]]:
    found = re.findall(r"^(\w+)-(\w+) rw", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return [(int(low, 16), int(high, 16)) for low, high in found]


def _resident() -> int:
    (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) << 10
