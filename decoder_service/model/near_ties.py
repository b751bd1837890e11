"""Counts the choices that rounding alone may have decided.

Knows logits. In float32 the order of sums, which may follow from what else is in a batch, moves a logit by far less
than the margin here; where a greedy request's two best logits are closer than that, its company may decide.
"""

import torch
from torch import Tensor

MARGIN = 1e-4
"""Between the two best logits; what is closer is a near tie."""


def count_near_ties(logits: Tensor, is_greedy: Tensor) -> Tensor:
    """Greedy rows of logits [num_rows, vocab_size] with their two best values within the margin: int64 [1].

    `is_greedy` [num_rows] says which rows are. It stays on the device, and waits for nothing.
    """
    close = logits >= logits.amax(dim=-1, keepdim=True) - MARGIN
    return ((close.sum(dim=-1) > 1) & is_greedy).sum(dtype=torch.int64)[None]
