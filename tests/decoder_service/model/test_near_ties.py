"""The counter of choices that rounding may decide."""

import torch

from decoder_service.model.near_ties import MARGIN, count_near_ties


def test_rows_whose_two_best_logits_are_within_the_margin_count_once() -> None:
    logits = torch.tensor([[1.0, 1.0 + MARGIN / 2, 0.0], [1.0, 1.0 + 2 * MARGIN, 0.0], [2.0, 2.0, 2.0]])
    assert count_near_ties(logits, torch.tensor([True] * 3)).tolist() == [2]


def test_rows_that_are_drawn_do_not_count() -> None:
    logits = torch.ones(3, 4)
    assert count_near_ties(logits, torch.tensor([False, True, False])).tolist() == [1]
    assert count_near_ties(logits, torch.tensor([False] * 3)).tolist() == [0]
    assert count_near_ties(logits[:0], torch.ones(0, dtype=torch.bool)).tolist() == [0]
