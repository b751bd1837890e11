"""What steers logits, against transformers' processors and, where it has none, against the definition."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from decoder_service.sampling.logits_processors import SamplingRow, process_logits
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.sampling.token_counts import TokenCounts

VOCABULARY = 40
PLAIN = SamplingParams(max_tokens=1)


def random_logits(num_rows: int, seed: int) -> Tensor:
    return 5 * torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def random_row(rng: random.Random) -> SamplingRow:
    """A row with about half of all parameters, whose bad words often begin with what was just generated."""

    def ids(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, most)))

    def some(value: object, default: object) -> object:
        return value if rng.random() < 0.5 else default

    prompt, output = ids(8), ids(8)[: rng.randint(0, 8)]
    known = prompt + output
    bad = [(*known[len(known) - rng.randint(0, len(known)) :], *ids(1)) for _ in range(3)] + [ids(3), ids(1)]
    values = {
        "repetition_penalty": some(rng.uniform(0.5, 2), 1.0),
        "frequency_penalty": some(rng.uniform(-2, 2), 0.0),
        "presence_penalty": some(rng.uniform(-2, 2), 0.0),
        "logit_bias": some(tuple((token_id, rng.uniform(-9, 9)) for token_id in dict.fromkeys(ids(6))), ()),
        "allowed_token_ids": some(ids(20), ()),
        "bad_token_sequences": some(tuple(bad), ()),
        "min_tokens": some(rng.randint(1, 8), 0),
        "stop_token_ids": frozenset(ids(3)),
        "ignore_eos": some(True, False),
    }
    return SamplingRow(
        params=replace(PLAIN, **values),  # type: ignore[arg-type]
        prompt_token_ids=prompt,
        output_token_ids=output,
        end_token_ids=frozenset(ids(2)),
    )


def reference(logits: Tensor, row: SamplingRow) -> Tensor:
    """One row by transformers, in its own order, and the two penalties that it lacks by their definition."""
    params = row.params
    token_ids = torch.tensor([[*row.prompt_token_ids, *row.output_token_ids]])
    first, last = LogitsProcessorList(), LogitsProcessorList()
    if params.logit_bias:
        first.append(SequenceBiasLogitsProcessor([[[token_id], bias] for token_id, bias in params.logit_bias]))
    if params.repetition_penalty != 1:
        first.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.bad_token_sequences:
        last.append(NoBadWordsLogitsProcessor([list(ids) for ids in params.bad_token_sequences]))
    ends = params.stop_token_ids | (frozenset() if params.ignore_eos else row.end_token_ids)
    if params.min_tokens:
        last.append(MinNewTokensLengthLogitsProcessor(len(row.prompt_token_ids), params.min_tokens, list(ends)))
    if params.allowed_token_ids:
        last.append(SuppressTokensLogitsProcessor([i for i in range(VOCABULARY) if i not in params.allowed_token_ids]))
    scores = first(token_ids, logits[None].clone())  # type: ignore[arg-type] # There is no LongTensor.
    for token_id in range(VOCABULARY):
        count = list(row.output_token_ids).count(token_id)
        scores[0, token_id] -= count * params.frequency_penalty + (count > 0) * params.presence_penalty
    processed: Tensor = last(token_ids, scores)[0]  # type: ignore[arg-type]
    return processed


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_of_random_rows_is_processed_as_transformers_processes_each(seed: int) -> None:
    rng = random.Random(seed)
    rows = [random_row(rng) for _ in range(rng.randint(1, 12))]
    logits = random_logits(len(rows), seed)
    expected = torch.stack([reference(each, row) for each, row in zip(logits, rows, strict=True)])
    torch.testing.assert_close(process_logits(logits, rows), expected, atol=1e-5, rtol=1e-6)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = random.Random(1)
    rows = [random_row(rng) for _ in range(20)]
    logits = random_logits(len(rows), 1)
    together = process_logits(logits, rows)
    for index, row in enumerate(rows):
        assert torch.equal(together[index], process_logits(logits[index : index + 1], [row])[0])


def test_rows_without_parameters_are_not_touched() -> None:
    rows = [SamplingRow(params=PLAIN, prompt_token_ids=(1, 2), output_token_ids=(3,))] * 3
    logits = random_logits(3, 0)
    assert process_logits(logits, rows) is logits
    before = logits.clone()
    rows[1] = replace(rows[1], params=replace(PLAIN, allowed_token_ids=(7,), logit_bias=((7, 2.0),)))
    processed = process_logits(logits, rows)
    assert torch.equal(logits, before), "the model's own logits are still needed"
    assert torch.equal(processed[[0, 2]], before[[0, 2]])
    assert processed[1, 7] == before[1, 7] + 2
    assert processed[1].isfinite().sum() == 1


class Watched(Sequence[int]):
    """Tokens that count how often one of them is read."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids, self.num_read = token_ids, 0

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401
        found = self.token_ids[place]
        self.num_read += len(found) if isinstance(place, slice) else 1
        return found


@pytest.mark.parametrize("penalty", ["repetition_penalty", "frequency_penalty", "presence_penalty"])
def test_a_step_reads_no_token_that_was_counted_before_and_changes_what_a_new_row_would(penalty: str) -> None:
    rng = random.Random(penalty)
    output: list[int] = []
    prompt, watched = Watched([rng.randrange(VOCABULARY) for _ in range(1000)]), Watched(output)
    params = replace(PLAIN, **{penalty: 1.5})  # type: ignore[arg-type]
    row = SamplingRow(params=params, prompt_token_ids=prompt, output_token_ids=watched)
    for step in range(300):
        logits = random_logits(1, step)
        prompt.num_read = watched.num_read = 0
        processed = process_logits(logits, [row])
        assert watched.num_read <= 1
        assert prompt.num_read == 0 or step == 0
        again = replace(row, output_token_ids=tuple(output), prompt_token_ids=tuple(prompt), counts=TokenCounts())
        torch.testing.assert_close(processed[0], reference(logits[0], again), atol=1e-4, rtol=1e-6)
        assert torch.equal(processed, process_logits(logits, [again]))
        output.append(rng.randrange(VOCABULARY))
    del output[100:]  # Not the output that was counted.
    shorter = replace(row, output_token_ids=tuple(output), counts=TokenCounts())
    assert torch.equal(process_logits(logits, [row]), process_logits(logits, [shorter]))


@pytest.mark.parametrize("num_output", range(5))
def test_nothing_ends_a_row_before_its_least_length(num_output: int) -> None:
    row = SamplingRow(
        params=replace(PLAIN, min_tokens=3, stop_token_ids=frozenset({5})),
        output_token_ids=(9,) * num_output,
        end_token_ids=frozenset({2}),
    )
    ruled_out = process_logits(random_logits(1, 0), [row])[0].isinf().nonzero().flatten().tolist()
    assert ruled_out == ([2, 5] if num_output < 3 else [])


def test_a_bad_word_of_several_tokens_is_blocked_where_its_beginning_stands() -> None:
    row = SamplingRow(
        params=replace(PLAIN, bad_token_sequences=((4, 5, 6),)), prompt_token_ids=(1, 4), output_token_ids=(5,)
    )
    assert process_logits(random_logits(1, 0), [row])[0].isinf().nonzero().flatten().tolist() == [6]
    for output in ((), (5, 5), (4,), (5, 6)):
        assert process_logits(random_logits(1, 0), [replace(row, output_token_ids=output)]).isfinite().all()
