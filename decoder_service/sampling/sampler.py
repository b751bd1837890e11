"""Chooses the next token of every row of a batch.

Knows logits and sampling parameters. Does not know requests, text or the model. First the row's own processors
(see `logits_processors`), then, unless it is greedy, the filters in the order of Hugging Face transformers:
temperature, top-k, top-p, min-p, each on what the one before left.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder_service.engine.step import NoToken
from decoder_service.sampling.logits_processors import SamplingRow, process_logits

_MIN_TEMPERATURE = 1e-6
_NOT_FINITE, _NONE_ALLOWED = -1, -2
_REASONS = {_NOT_FINITE: NoToken.NOT_FINITE, _NONE_ALLOWED: NoToken.NONE_ALLOWED}
"""What stands in place of a token id: as one tensor tells everything, one read brings it to the host."""

Move = Callable[["array[float]"], Tensor]
"""Brings numbers to the device of the logits, as float64."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How the rows of a batch are sampled; all that the device must know of it is there already."""

    rows: Sequence[SamplingRow]
    numbers: Tensor
    """float64 [6, num_drawn]: of each row that is drawn its index, temperature, top-k, top-p, min-p, random number"""

    @staticmethod
    def of(rows: Sequence[SamplingRow], move: Move, *, vocab_size: int) -> "SamplingBatch":
        """Bring what the rows need to the device."""
        drawn = [(index, row.params, row.uniform) for index, row in enumerate(rows) if row.params.temperature > 0]
        numbers = array("d", [index for index, _, _ in drawn])
        # Below the floor the most likely token is drawn anyway, and a quotient could overflow.
        numbers.extend(max(params.temperature, _MIN_TEMPERATURE) for _, params, _ in drawn)
        numbers.extend(params.top_k or vocab_size for _, params, _ in drawn)
        numbers.extend(params.top_p for _, params, _ in drawn)
        numbers.extend(params.min_p for _, params, _ in drawn)
        numbers.extend(uniform for _, _, uniform in drawn)
        return SamplingBatch(rows, (move(numbers) if drawn else torch.empty(0, dtype=torch.float64)).view(6, -1))

    @property
    def num_drawn(self) -> int:
        """Rows that are drawn; the others are greedy."""
        return self.numbers.shape[1]

    def is_greedy(self, device: torch.device) -> Tensor:
        """Of each row whether it takes its likeliest token [num_rows]."""
        greedy = torch.ones(len(self.rows), dtype=torch.bool, device=device)
        return greedy.index_fill_(0, self.numbers[0].long(), value=False) if self.num_drawn else greedy


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int | NoToken]:
    """Next token id for each row of fp32 logits [num_rows, vocab_size], or why there is none."""
    if not rows:
        return []

    def move(numbers: "array[float]") -> Tensor:
        return torch.frombuffer(numbers, dtype=torch.float64).to(logits.device)

    return outcomes(choose(logits, SamplingBatch.of(rows, move, vocab_size=logits.shape[-1])).tolist())


def choose(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """What `outcomes` reads the next tokens from: int64 [num_rows], for fp32 logits [num_rows, vocab_size].

    Waits for nothing, unless a row is steered.
    """
    # Read once, where `isfinite` reads and writes them several times; a NaN is the least and the greatest of its row.
    least, greatest = logits.aminmax(dim=-1)
    finite = (least > -torch.inf) & (greatest < torch.inf)
    logits = process_logits(logits, batch.rows)
    best, tokens = logits.max(dim=-1)
    if 0 < batch.num_drawn == len(batch.rows):
        tokens = _draw(logits, batch.numbers)
    elif batch.num_drawn:
        indices = batch.numbers[0].long()
        tokens = tokens.index_copy(0, indices, _draw(logits[indices], batch.numbers))
    return torch.where(finite, torch.where(best > -torch.inf, tokens, _NONE_ALLOWED), _NOT_FINITE)


def outcomes(choice: Sequence[int]) -> list[int | NoToken]:
    """The tokens that `choose` chose, or why there is none."""
    return [_REASONS.get(number, number) for number in choice]


def as_token_ids(choice: Tensor) -> Tensor:
    """The tokens that `choose` chose, to go on from; any token at all where there is none."""
    return choice.clamp(min=0)


def filtered_probs(logits: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [num_rows, vocab_size] in falling order, 0 for what the filters drop, and their token ids.

    For `SamplingBatch.numbers` of as many rows. They are not scaled to add up to 1 again.
    """
    temperature, top_k, top_p, min_p = numbers[1:5, :, None].float()
    # A stable sort, so that equal logits keep their order whatever else is in the batch.
    ordered, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    probs = ordered.masked_fill(ranks >= top_k, -torch.inf).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    # The first token always stays: nothing stands before it and none is likelier.
    kept = (ranks == 0) | ((before < top_p) & (probs >= min_p * probs[:, :1]))
    return probs.masked_fill(~kept, 0.0), order


def _draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """Draw one token a row by inverting the distribution function at the row's random number."""
    probs, order = filtered_probs(logits, numbers)
    uniforms = numbers[5, :, None]
    cumulative = probs.double().cumsum(dim=-1)
    choice = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # A row of NaN finds no place at all, and where sums are made in parallel theirs may still grow by rounding
    # behind the last token that can be drawn.
    last = (probs > 0).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return order.gather(-1, choice.minimum(last)).squeeze(-1)
