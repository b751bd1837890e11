"""Several completions of one prompt, drawn from transformers' own logits by the definition of seed, index and place."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from decoder_service.engine.request import Request
from decoder_service.sampling.sampling_params import SamplingParams
from tests.parity.harness import Harness
from tests.parity.prompts import IMAGE_SHAPES
from tests.tiny_models import Prompt, Shape, image_tokens, random_pixtral, random_text_model, reference_logits, save

N = 5
MAX_TOKENS = 24
TEMPERATURE = 1.3
Outputs = dict[tuple[str, int], list[int]]


@dataclass(frozen=True)
class Counts:
    """What an engine had to do."""

    preemptions: int
    tokens: int


class CompletionHarness(Harness):
    """Runs prompts for several completions each and hands images to whichever completion asks for them."""

    def complete(self, prompts: Sequence[Prompt], *, n: int) -> tuple[Outputs, Counts]:
        requests = [self._sampled(index, prompt, n) for index, prompt in enumerate(prompts)]
        features = [self._encode(prompt) for prompt in prompts]
        for request, held in zip(requests, features, strict=True):
            self.engine.submit(request)
            self._hand_over(request, held)
        outputs: Outputs = {}
        num_tokens = 0
        while self.engine.has_work:
            output = self.engine.step()
            num_tokens += self.engine.stats().num_batched_tokens
            assert not output.failed
            for token in output.tokens:
                outputs.setdefault((token.request_id, token.index), []).append(token.token_id)
            for wanted in output.wanted:
                for image in wanted.image_indices:
                    again = features[int(wanted.request_id)][image]
                    self.engine.features_arrived(wanted.request_id, image, again, index=wanted.index)
            self.engine.check_integrity()
        stats = self.engine.stats()
        assert stats.num_free_blocks == stats.num_blocks
        return outputs, Counts(stats.num_preemptions, num_tokens)

    def _sampled(self, index: int, prompt: Prompt, n: int) -> Request:
        sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=40 + index, n=n, ignore_eos=True)
        return replace(self._request(index, prompt), sampling=sampling)


def uniform(seed: int, index: int, position: int) -> float:
    """The documented hash, written again."""
    counter = seed.to_bytes(8, "little") + index.to_bytes(8, "little") + position.to_bytes(8, "little")
    digest = hashlib.blake2b(counter, digest_size=8, person=b"diptych-sampling").digest()
    return (int.from_bytes(digest, "little") // 2**11) / 2**53


def assert_drawn(model: PreTrainedModel, prompt: Prompt, token_ids: list[int], *, seed: int, index: int) -> None:
    """Each token is the one at whose place in the falling distribution the random number lies."""
    probs = (reference_logits(model, prompt, token_ids).double() / TEMPERATURE).softmax(dim=-1)
    assert len(token_ids) == MAX_TOKENS
    for position, (token_id, row) in enumerate(zip(token_ids, probs, strict=True)):
        number, order = uniform(seed, index, position), row.sort(descending=True)
        place = order.indices.tolist().index(token_id)
        ends = order.values.cumsum(dim=-1)
        assert ends[place] - row[token_id] - 1e-4 <= number <= ends[place] + 1e-4


@pytest.mark.parametrize(("num_blocks", "token_budget"), [(400, 500), (42, 7)])
def test_completions_of_text_are_drawn_from_the_references_logits(
    num_blocks: int, token_budget: int, tmp_path: Path
) -> None:
    model = random_text_model(Shape(name="text"))
    generator = torch.Generator().manual_seed(3)
    prompts = [Prompt(token_ids=torch.randint(20, 160, (length,), generator=generator).tolist()) for length in (1, 30)]
    harness = CompletionHarness(save(model, tmp_path), num_blocks=num_blocks, block_size=4, token_budget=token_budget)
    outputs, counts = harness.complete(prompts[1:], n=N)
    assert set(outputs) == {("0", index) for index in range(N)}
    assert len({tuple(ids) for ids in outputs.values()}) == N
    for (_, index), token_ids in outputs.items():
        assert_drawn(model, prompts[1], token_ids, seed=40, index=index)
    if num_blocks == 400:
        assert counts.tokens == 30 + N * (MAX_TOKENS - 1), "the prompt is computed once"
    outputs, counts = harness.complete(prompts, n=3)
    assert (counts.preemptions > 0) == (num_blocks == 42)
    for (name, index), token_ids in outputs.items():
        assert_drawn(model, prompts[int(name)], token_ids, seed=40 + int(name), index=index)


@pytest.mark.parametrize("num_blocks", [400, 52])
def test_completions_about_pictures_share_them_and_survive_preemption(num_blocks: int, tmp_path: Path) -> None:
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    pictures = [
        torch.randn(3, 2 * shape.patch, 3 * shape.patch, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    ]
    prompts = [
        Prompt(token_ids=[1, 30, *image_tokens(2, 3), 50, *image_tokens(2, 3), 60, 61 + extra], images=pictures)
        for extra in range(2)
    ]
    harness = CompletionHarness(save(model, tmp_path), num_blocks=num_blocks, block_size=2, token_budget=9)
    outputs, counts = harness.complete(prompts, n=3)
    assert len(outputs) == 6
    assert (counts.preemptions > 0) == (num_blocks == 52)
    for (name, index), token_ids in outputs.items():
        assert_drawn(model, prompts[int(name)], token_ids, seed=40 + int(name), index=index)
