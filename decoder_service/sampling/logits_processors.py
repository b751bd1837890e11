"""What a request's own parameters do to its logits, before the temperature.

Knows logits, token ids and sampling parameters. Does not know requests, text or how a token is drawn. The order
is that of Hugging Face transformers, where it has the processor:

    logit_bias            added to the logit
    repetition_penalty    for tokens of prompt and output; a positive logit is divided by it, a negative multiplied
    frequency_penalty     times the count in the output, taken off; with it presence_penalty, once if the count is not 0
    bad_words, min_tokens, allowed_token_ids, structured    what is ruled out becomes minus infinity

Rows that ask for none of these are not touched and cost nothing. For the others the work is that of the tokens
named, not of the vocabulary, save for `allowed_token_ids`. What is kept from step to step follows from the tokens
themselves (see `token_counts`), so a row is the same in any batch and after any preemption.
"""

from array import array
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.sampling.token_counts import TokenCounts
from decoder_service.sampling.token_masks import mask_logits
from decoder_service.structured.structure import Matcher


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRow:
    """How one row is sampled."""

    params: SamplingParams
    uniform: float = 0.0
    """The row's random number in [0, 1); unused where the row is greedy."""
    prompt_token_ids: Sequence[int] = ()
    output_token_ids: Sequence[int] = ()
    end_token_ids: Set[int] = frozenset()
    """The model's own end tokens."""
    counts: TokenCounts = field(default_factory=TokenCounts)
    """The tokens counted, as far as they are penalised; kept from step to step, it costs what is new."""
    matcher: Matcher | None = None
    """Follows the row through the language that it is kept inside."""

    @property
    def is_steered(self) -> bool:
        """Whether its logits are changed before the temperature."""
        return self.params.steers_logits or self.matcher is not None


def process_logits(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Logits [num_rows, vocab_size] as the rows' parameters have them; the same tensor where none has any."""
    steered = [(index, row) for index, row in enumerate(rows) if row.is_steered]
    if not steered:
        return logits
    logits = logits.clone()
    for process in (_add_bias, _penalise_repetition, _penalise_counts, _rule_out, _keep_allowed):
        process(logits, steered)
    mask_logits(logits, [(index, row.matcher) for index, row in steered if row.matcher is not None])
    return logits


_Steered = Sequence[tuple[int, SamplingRow]]
"""Rows with their indices in the batch."""


@dataclass(slots=True)
class _Places:
    """Places in the logits, row by row, with a value each."""

    rows: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, row: int, token_ids: Iterable[int], value: float = 0.0) -> None:
        before = len(self.token_ids)
        self.token_ids.extend(token_ids)
        num_added = len(self.token_ids) - before
        self.rows.extend([row] * num_added)
        self.values.extend([value] * num_added)

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows, token_ids = torch.tensor((self.rows, self.token_ids), dtype=torch.long, device=device)
        return rows, token_ids

    def value_tensor(self, device: torch.device) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float32, device=device)


def _add_bias(logits: Tensor, steered: _Steered) -> None:
    places = _Places()
    for index, row in steered:
        for token_id, bias in row.params.logit_bias:
            places.add(index, (token_id,), bias)
    if places.rows:
        logits[places.indices(logits.device)] += places.value_tensor(logits.device)


def _penalise_repetition(logits: Tensor, steered: _Steered) -> None:
    for index, row in steered:
        penalty = row.params.repetition_penalty
        if penalty != 1 and (row.prompt_token_ids or row.output_token_ids):
            known = row.counts.known(row.prompt_token_ids, row.output_token_ids)
            places = _to_tensor(known.token_ids, torch.long, logits.device)
            scores = logits[index].take(places)
            logits[index].put_(places, torch.where(scores < 0, scores * penalty, scores / penalty))


def _penalise_counts(logits: Tensor, steered: _Steered) -> None:
    for index, row in steered:
        frequency, presence = row.params.frequency_penalty, row.params.presence_penalty
        if (frequency or presence) and row.output_token_ids:
            output = row.counts.output(row.output_token_ids)
            counts = _to_tensor(output.counts, torch.float32, logits.device)
            places = _to_tensor(output.token_ids, torch.long, logits.device)
            logits[index].index_add_(0, places, frequency * counts + presence, alpha=-1)


def _to_tensor(numbers: "array[int] | array[float]", dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy: an array moves when it grows."""
    return torch.frombuffer(numbers, dtype=dtype).clone().to(device)


def _rule_out(logits: Tensor, steered: _Steered) -> None:
    places = _Places()
    for index, row in steered:
        places.add(index, _bad_token_ids(row))
        if len(row.output_token_ids) < row.params.min_tokens:
            places.add(index, row.params.stop_token_ids)
            if not row.params.ignore_eos:
                places.add(index, row.end_token_ids)
    if places.rows:
        logits[places.indices(logits.device)] = -torch.inf


def _bad_token_ids(row: SamplingRow) -> list[int]:
    """Last tokens of the bad sequences whose other tokens are the newest of prompt and output, in this order."""
    sequences = row.params.bad_token_sequences
    num_known = max(map(len, sequences), default=1) - 1
    newest = tuple(row.output_token_ids[-num_known:]) if num_known else ()
    if len(newest) < num_known:
        newest = (*row.prompt_token_ids[len(newest) - num_known :], *newest)
    return [ids[-1] for ids in sequences if ids[:-1] == newest[len(newest) - len(ids) + 1 :]]


def _keep_allowed(logits: Tensor, steered: _Steered) -> None:
    limited = [(index, row) for index, row in steered if row.params.allowed_token_ids]
    if not limited:
        return
    places = _Places()
    for index, row in limited:
        places.add(index, row.params.allowed_token_ids)
    allowed = places.indices(logits.device)
    kept = logits[allowed]
    logits[torch.tensor([index for index, _ in limited], device=logits.device)] = -torch.inf
    logits[allowed] = kept
