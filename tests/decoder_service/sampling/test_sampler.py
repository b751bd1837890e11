"""Which token is drawn: the distribution against transformers, the draws against the distribution."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from decoder_service.engine.step import NoToken
from decoder_service.sampling.logits_processors import SamplingRow
from decoder_service.sampling.random_stream import uniform
from decoder_service.sampling.sampler import SamplingBatch, filtered_probs, sample
from decoder_service.sampling.sampling_params import SamplingParams

VOCABULARY = 50
GREEDY = SamplingParams(max_tokens=1)
ALMOST_ONE = 1 - 2.0**-53


def random_logits(num_rows: int, seed: int, *, scale: float = 3) -> Tensor:
    return scale * torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def random_params(rng: random.Random) -> SamplingParams:
    return replace(
        GREEDY,
        temperature=rng.uniform(0.2, 2),
        top_k=rng.choice([0, 1, 5, VOCABULARY]),
        top_p=rng.choice([1.0, rng.uniform(0.1, 1)]),
        min_p=rng.choice([0.0, rng.uniform(0, 0.5)]),
    )


def reference_probs(logits: Tensor, params: SamplingParams) -> Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    warpers.append(MinPLogitsWarper(params.min_p))
    nothing = torch.zeros(1, 1, dtype=torch.long)
    probs: Tensor = warpers(nothing, logits[None])[0].softmax(dim=-1)  # type: ignore[arg-type] # There is no LongTensor.
    return probs


@pytest.mark.parametrize("seed", range(30))
def test_a_batch_of_random_rows_has_the_distributions_of_transformers(seed: int) -> None:
    rng = random.Random(seed)
    rows = [SamplingRow(params=random_params(rng)) for _ in range(10)]
    logits = random_logits(len(rows), seed)
    batch = SamplingBatch.of(rows, torch.tensor, vocab_size=VOCABULARY)
    probs, order = filtered_probs(logits, batch.numbers)
    got = torch.zeros_like(probs).scatter(-1, order, probs / probs.sum(dim=-1, keepdim=True))
    expected = torch.stack([reference_probs(each, row.params) for each, row in zip(logits, rows, strict=True)])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def chi_square(counts: Counter[int], probs: Tensor) -> float:
    total = sum(counts.values())
    expected = {token_id: total * prob for token_id, prob in enumerate(probs.tolist())}
    return math.fsum((counts[token_id] - number) ** 2 / number for token_id, number in expected.items())


def test_draws_follow_the_distribution() -> None:
    """Over 5000 fixed seeds; chi square with 7 degrees of freedom is over 24.3 once in a thousand."""
    logits = random_logits(1, 3, scale=1)[:, :8]
    params = replace(GREEDY, temperature=0.7)
    rows = [SamplingRow(params=params, uniform=uniform(seed=seed, index=0, position=4)) for seed in range(5000)]
    counts = Counter(token for token in sample(logits.expand(5000, -1), rows) if isinstance(token, int))
    assert chi_square(counts, (logits[0] / 0.7).softmax(dim=-1)) < 24.3
    # The negative control: it tells 0.7 from 0.8.
    assert chi_square(counts, (logits[0] / 0.8).softmax(dim=-1)) > 24.3


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = random.Random(2)
    rows = [
        SamplingRow(
            params=replace(random_params(rng), frequency_penalty=0.5, temperature=rng.choice([0, 1])),
            uniform=rng.random(),
            output_token_ids=[rng.randrange(VOCABULARY) for _ in range(9)],
        )
        for _ in range(64)
    ]
    logits = random_logits(len(rows), 2)
    alone = [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
    assert sample(logits, rows) == alone
    shuffled = rng.sample(range(64), 64)
    assert sample(logits[shuffled], [rows[index] for index in shuffled]) == [alone[index] for index in shuffled]


@pytest.mark.parametrize("number", [0.0, ALMOST_ONE])
def test_what_is_ruled_out_is_never_drawn(number: float) -> None:
    row = SamplingRow(params=replace(GREEDY, temperature=2, allowed_token_ids=(3, 11, 30)), uniform=number)
    logits = random_logits(200, 5, scale=9)
    assert set(sample(logits, [row] * 200)) <= {3, 11, 30}
    top = SamplingRow(params=replace(GREEDY, temperature=2, top_k=2), uniform=number)
    best = logits.topk(2, dim=-1).indices.tolist()
    assert all(token in ids for token, ids in zip(sample(logits, [top] * 200), best, strict=True))


def test_greedy_takes_the_most_likely_of_what_is_left() -> None:
    logits = random_logits(1, 6)
    order = logits[0].argsort(descending=True).tolist()
    row = SamplingRow(params=GREEDY)
    assert sample(logits, [row]) == [order[0]]
    banned = replace(row, params=replace(GREEDY, bad_token_sequences=((order[0],), (order[1],))))
    assert sample(logits, [banned]) == [order[2]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_token_says_why_and_harms_nobody(temperature: float) -> None:
    logits = random_logits(4, 7)
    logits[1, 5] = math.nan
    logits[2, 5] = math.inf
    params = replace(GREEDY, temperature=temperature)
    fine = SamplingRow(params=params, uniform=0.3)
    nothing_left = replace(fine, params=replace(params, allowed_token_ids=(4,), bad_token_sequences=((4,),)))
    tokens = sample(logits, [fine, fine, nothing_left, nothing_left])
    assert tokens[1:] == [NoToken.NOT_FINITE, NoToken.NOT_FINITE, NoToken.NONE_ALLOWED]
    assert tokens[0] == sample(logits[:1], [fine])[0]
