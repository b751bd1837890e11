"""Chooses the next token of every row of a batch.

Knows logits and sampling parameters. Does not know requests, text or the model. The filters follow the
order of Hugging Face transformers: temperature, top-k, top-p, min-p, each on what the one before left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder_service.sampling_params import SamplingParams

_MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRow:
    """How one row is sampled."""

    params: SamplingParams
    uniform: float
    """The row's random number in [0, 1); unused where the row is greedy."""


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
    """Next token id for each row of fp32 logits [num_rows, vocab_size]; None where they are not all finite."""
    if not rows:
        return []
    tokens = logits.argmax(dim=-1)
    drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    if drawn:
        indices = torch.tensor(drawn, device=logits.device)
        tokens[indices] = _draw(logits[indices], [rows[index] for index in drawn])
    finite = logits.isfinite().all(dim=-1).tolist()
    return [token if is_finite else None for token, is_finite in zip(tokens.tolist(), finite, strict=True)]


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Draw one token a row by inverting the distribution function at the row's random number."""
    device, vocab_size = logits.device, logits.shape[-1]
    # Below the floor the most likely token is drawn anyway, and a quotient could overflow.
    temperature = _column([max(row.params.temperature, _MIN_TEMPERATURE) for row in rows], device)
    top_k = _column([row.params.top_k or vocab_size for row in rows], device)
    top_p = _column([row.params.top_p for row in rows], device)
    min_p = _column([row.params.min_p for row in rows], device)
    uniforms = torch.tensor([[row.uniform] for row in rows], dtype=torch.float64, device=device)

    # A stable sort, so that equal logits keep their order whatever else is in the batch.
    ordered, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab_size, device=device)
    probs = ordered.masked_fill(ranks >= top_k, -torch.inf).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    # The first token always stays: nothing stands before it and none is likelier.
    kept = (ranks == 0) | ((before < top_p) & (probs >= min_p * probs[:, :1]))
    cumulative = probs.masked_fill(~kept, 0.0).double().cumsum(dim=-1)
    choice = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    last_kept = kept.sum(dim=-1, keepdim=True) - 1
    return order.gather(-1, choice.minimum(last_kept)).squeeze(-1)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
