"""Log probabilities against transformers, through the engine: chunked, preempted, and beside a prefix cache."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch, StepOutput, StepResult, TokenOutput
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.sampling.logprobs import Logprobs
from tests.parity.harness import Harness
from tests.parity.prompts import IMAGE_SHAPES
from tests.tiny_models import (
    Prompt,
    Shape,
    image_tokens,
    random_pixtral,
    random_text_model,
    reference_logits,
    save,
)

TEXT = Shape(name="text")
NUM_TOP = 4


class LogprobHarness(Harness):
    """Asks for log probabilities of prompt and completion, and keeps all that the engine says."""

    def __init__(
        self, directory: Path, *, num_blocks: int, token_budget: int, asking: Collection[int] | None = None
    ) -> None:
        """The prompts numbered in `asking` ask for their own log probabilities; all do where it is None."""
        super().__init__(directory, num_blocks=num_blocks, block_size=4, token_budget=token_budget)
        self.tokens: dict[str, list[TokenOutput]] = {}
        self.num_prompt_rows = 0
        self._asking = asking
        self._execute, self.runner.execute = self.runner.execute, self._recorded  # type: ignore[method-assign]
        self._step, self.engine.step = self.engine.step, self._heard  # type: ignore[method-assign]
        self.num_cut_short = 0
        """Steps of requests that came back with a part of their prompt's log probabilities."""

    def ask(self, prompts: list[Prompt]) -> None:
        """Run prompts to their ends."""
        self.tokens.clear()
        self.run(prompts)

    def logprobs(self, index: int) -> list[Logprobs]:
        """Of a prompt from its second token on, and of its completion."""
        tokens = self.tokens[str(index)]
        assert not any(token.prompt_logprobs for token in tokens[1:])
        return [*tokens[0].prompt_logprobs, *(each.logprobs for each in tokens if each.logprobs is not None)]

    def token_ids(self, index: int) -> list[int]:
        return [token.token_id for token in self.tokens[str(index)]]

    def _request(self, index: int, prompt: Prompt) -> Request:
        request = super()._request(index, prompt)
        asks = self._asking is None or index in self._asking
        sampling = replace(request.sampling, logprobs=NUM_TOP, prompt_logprobs=NUM_TOP if asks else None, max_tokens=24)
        return replace(request, sampling=sampling)

    def _recorded(self, batch: ScheduledBatch) -> StepResult:
        for each in (scheduled.request for scheduled in batch.requests):
            told = len(each.prompt_logprobs or ())
            self.num_cut_short += each.num_preemptions > 0 and 0 < told < each.num_prompt_tokens - 1
        result = self._execute(batch)
        self.num_prompt_rows += sum(map(len, result.prompt_logprobs.values()))
        return result

    def _heard(self) -> StepOutput:
        output = self._step()
        for token in output.tokens:
            self.tokens.setdefault(token.request_id, []).append(token)
        return output


def reference(model: PreTrainedModel, prompt: Prompt, output: list[int]) -> Tensor:
    """Log probabilities [num_tokens - 1, vocab_size] of everything after the first token of the prompt."""
    first = Prompt(token_ids=prompt.token_ids[:1], images=prompt.images)
    return reference_logits(model, first, [*prompt.token_ids[1:], *output]).log_softmax(dim=-1)


def assert_matches(got: list[Logprobs], token_ids: list[int], expected: Tensor) -> None:
    assert len(got) == len(token_ids) == len(expected)
    chosen = expected.gather(-1, torch.tensor(token_ids)[:, None]).squeeze(-1)
    torch.testing.assert_close(torch.tensor([each.logprob for each in got]), chosen, atol=2e-4, rtol=0)
    best = expected.topk(NUM_TOP, dim=-1).values
    torch.testing.assert_close(torch.tensor([list(each.top_logprobs) for each in got]), best, atol=2e-4, rtol=0)
    named = expected.gather(-1, torch.tensor([list(each.top_token_ids) for each in got]))
    torch.testing.assert_close(named, best, atol=2e-4, rtol=0)


def text_prompts(*lengths: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(5)
    return [Prompt(token_ids=torch.randint(20, 160, (length,), generator=generator).tolist()) for length in lengths]


@pytest.mark.parametrize("token_budget", [7, 500])
def test_logprobs_of_prompts_and_completions_are_the_references(token_budget: int, tmp_path: Path) -> None:
    model = random_text_model(TEXT)
    prompts = text_prompts(1, 2, 33, 90)
    harness = LogprobHarness(save(model, tmp_path), num_blocks=128, token_budget=token_budget)
    for _ in range(2):  # The second time the prefix cache holds the prompts, and must not be asked.
        harness.ask(prompts)
        for index, prompt in enumerate(prompts):
            ids = harness.token_ids(index)
            everything = [*prompt.token_ids[1:], *ids]
            assert_matches(harness.logprobs(index), everything, reference(model, prompt, ids))


def test_logprobs_of_a_prompt_come_once_and_right_though_it_is_computed_twice(tmp_path: Path) -> None:
    model = random_text_model(TEXT)
    prompts = text_prompts(2, 2, 2, 2, 46)
    harness = LogprobHarness(save(model, tmp_path), num_blocks=18, token_budget=6)
    harness.ask(prompts)
    assert harness.num_cut_short, "nothing was preempted in the middle of its prompt"
    assert harness.num_prompt_rows == 4 + 45
    for index, prompt in enumerate(prompts):
        ids = harness.token_ids(index)
        assert_matches(harness.logprobs(index), [*prompt.token_ids[1:], *ids], reference(model, prompt, ids))


def test_logprobs_of_a_prompt_with_pictures_are_the_references(tmp_path: Path) -> None:
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    pictures = [
        torch.randn(3, 2 * shape.patch, 3 * shape.patch, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    ]
    prompt = Prompt(token_ids=[1, 30, *image_tokens(2, 3), 50, *image_tokens(2, 3), 60, 61], images=pictures)
    harness = LogprobHarness(save(model, tmp_path), num_blocks=64, token_budget=6)
    harness.ask([prompt])
    ids = harness.token_ids(0)
    assert_matches(harness.logprobs(0), [*prompt.token_ids[1:], *ids], reference(model, prompt, ids))


@pytest.mark.parametrize("token_budget", [16, 500])
@pytest.mark.parametrize("asking", [(), (1,), (0, 1, 2)], ids=["last token", "variable", "all"])
def test_logits_are_computed_only_where_they_are_asked_for(
    asking: tuple[int, ...], token_budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MAX's `ReturnLogits` names them: for the last token of each request, and for the prompts of some or all."""
    directory = save(random_text_model(TEXT), tmp_path)
    harness = LogprobHarness(directory, num_blocks=64, token_budget=token_budget, asking=asking)
    num_rows: list[int] = []

    def counted(decoder: MistralForCausalLM, hidden: Tensor) -> Tensor:
        num_rows.append(len(hidden))
        return logits(decoder, hidden)

    logits = MistralForCausalLM.logits
    monkeypatch.setattr(MistralForCausalLM, "logits", counted)
    prompts = text_prompts(50, 17, 31)
    harness.ask(prompts)
    num_judged = sum(len(prompts[index].token_ids) - 1 for index in asking)
    assert harness.num_prompt_rows == num_judged
    assert sum(num_rows) == sum(len(harness.token_ids(index)) for index in range(len(prompts))) + num_judged
