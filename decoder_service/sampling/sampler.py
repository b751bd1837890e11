"""Chooses the next token of every row of a batch.

Knows logits and sampling parameters. Does not know requests, text or the model. First the row's own processors
(see `logits_processors`), then, unless it is greedy, the filters in the order of Hugging Face transformers:
temperature, top-k, top-p, min-p, each on what the one before left.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder_service.engine.step import NoToken
from decoder_service.sampling.logits_processors import SamplingRow, process_logits

_MIN_TEMPERATURE = 1e-6


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int | NoToken]:
    """Next token id for each row of fp32 logits [num_rows, vocab_size], or why there is none."""
    if not rows:
        return []
    finite = logits.isfinite().all(dim=-1)
    logits = process_logits(logits, rows)
    best, tokens = logits.max(dim=-1)
    drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    if drawn:
        indices = torch.tensor(drawn, device=logits.device)
        tokens[indices] = _draw(logits[indices], [rows[index] for index in drawn])
    columns = zip(tokens.tolist(), finite.tolist(), (best > -torch.inf).tolist(), strict=True)
    return [_outcome(token, is_finite=is_finite, is_allowed=is_allowed) for token, is_finite, is_allowed in columns]


def filtered_probs(logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[Tensor, Tensor]:
    """Probabilities [num_rows, vocab_size] in falling order, 0 for what the filters drop, and their token ids.

    They are not scaled to add up to 1 again.
    """
    device, vocab_size = logits.device, logits.shape[-1]
    # Below the floor the most likely token is drawn anyway, and a quotient could overflow.
    temperature = _column([max(row.params.temperature, _MIN_TEMPERATURE) for row in rows], device)
    top_k = _column([row.params.top_k or vocab_size for row in rows], device)
    top_p = _column([row.params.top_p for row in rows], device)
    min_p = _column([row.params.min_p for row in rows], device)

    # A stable sort, so that equal logits keep their order whatever else is in the batch.
    ordered, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab_size, device=device)
    probs = ordered.masked_fill(ranks >= top_k, -torch.inf).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    # The first token always stays: nothing stands before it and none is likelier.
    kept = (ranks == 0) | ((before < top_p) & (probs >= min_p * probs[:, :1]))
    return probs.masked_fill(~kept, 0.0), order


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Draw one token a row by inverting the distribution function at the row's random number."""
    probs, order = filtered_probs(logits, rows)
    uniforms = torch.tensor([[row.uniform] for row in rows], dtype=torch.float64, device=logits.device)
    cumulative = probs.double().cumsum(dim=-1)
    choice = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # A row of NaN finds no place at all, and where sums are made in parallel theirs may still grow by rounding
    # behind the last token that can be drawn.
    last = (probs > 0).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return order.gather(-1, choice.minimum(last)).squeeze(-1)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


def _outcome(token_id: int, *, is_finite: bool, is_allowed: bool) -> int | NoToken:
    if not is_finite:
        return NoToken.NOT_FINITE
    return token_id if is_allowed else NoToken.NONE_ALLOWED
