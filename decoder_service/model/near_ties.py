"""Counts the choices that rounding alone may have decided.

Knows logits. In float32 the order of sums, which may follow from what else is in a batch, moves a logit by far less
than the margin here; where a greedy request's two best logits are closer than that, its company may decide.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder_service.engine.request import Request

MARGIN = 1e-4
"""Between the two best logits; what is closer is a near tie."""


def count_near_ties(logits: Tensor, requests: Sequence[Request]) -> int:
    """Greedy requests whose row of logits [num_rows, vocab_size] has its two best values within the margin."""
    greedy = [row for row, request in enumerate(requests) if not request.sampling.temperature]
    if not greedy:
        return 0
    rows = logits if len(greedy) == len(requests) else logits[torch.tensor(greedy, device=logits.device)]
    close = rows >= rows.amax(dim=-1, keepdim=True) - MARGIN
    return int((close.sum(dim=-1) > 1).sum())
