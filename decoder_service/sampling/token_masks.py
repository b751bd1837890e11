"""Rules out the tokens that would leave a completion's language, for all rows of a batch at once.

Knows bits and logits. Does not know what makes the bits (see `structure`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder_service.structured.structure import Matcher

_BITS = 8


def mask_logits(logits: Tensor, matchers: Sequence[tuple[int, Matcher]]) -> None:
    """Set logits [num_rows, vocab_size] to minus infinity for the tokens that each row's matcher rules out."""
    if not matchers:
        return
    vocab_size = logits.shape[-1]
    # The library writes words of 32 bits, lowest first; read by bytes they are in order on every machine we run on.
    masks = torch.zeros(len(matchers), -(-vocab_size // 32) * 4, dtype=torch.uint8)
    for row, (_, matcher) in zip(masks, matchers, strict=True):
        matcher.mask(row.data_ptr(), row.numel())
    masks = masks.to(logits.device)
    bits = (masks[:, :, None] >> torch.arange(_BITS, dtype=torch.uint8, device=logits.device)) & 1
    ruled_out = bits.flatten(1)[:, :vocab_size] == 0
    rows = torch.tensor([index for index, _ in matchers], device=logits.device)
    logits[rows] = logits[rows].masked_fill(ruled_out, -torch.inf)
