"""The counter of choices that rounding may decide."""

import torch

from decoder_service.engine.request import Request
from decoder_service.model.near_ties import MARGIN, count_near_ties
from decoder_service.sampling.sampling_params import SamplingParams


def make_request(temperature: float = 0.0) -> Request:
    return Request(
        request_id="r", prompt_token_ids=(1,), arrival=0, sampling=SamplingParams(max_tokens=1, temperature=temperature)
    )


def test_rows_whose_two_best_logits_are_within_the_margin_count_once() -> None:
    logits = torch.tensor([[1.0, 1.0 + MARGIN / 2, 0.0], [1.0, 1.0 + 2 * MARGIN, 0.0], [2.0, 2.0, 2.0]])
    assert count_near_ties(logits, [make_request()] * 3) == 2


def test_rows_that_are_drawn_do_not_count() -> None:
    logits = torch.ones(3, 4)
    assert count_near_ties(logits, [make_request(0.7), make_request(), make_request(1.0)]) == 1
    assert count_near_ties(logits, [make_request(0.7)] * 3) == 0
    assert count_near_ties(logits[:0], []) == 0
