"""Whatever is cached, cut, preempted, late, sampled or shared: the real model gives the ids of the plain run."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.model.weight_types import WeightTypes
from decoder_service.cache.block_hash import block_hash
from decoder_service.engine.engine import Engine
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.request import Request
from decoder_service.model.compute import TorchCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.step_queue import OnThread
from decoder_service.model.weights import DecoderModel
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.vision.image_encoder import ImageFeatures
from tests.decoder_service.operations import VARIABLE
from tests.parity.harness import COMPUTES, CPU, Harness, MakeCompute
from tests.parity.prompts import IMAGE_SHAPES, mixed_prompts
from tests.tiny_models import Prompt, random_pixtral, save

MAX_TOKENS = 12
MAX_COMPLETIONS = 3
NUM_PROMPTS = 6
NIGHTLY = VARIABLE in os.environ
EXAMPLES = max(1, int(os.environ.get(VARIABLE, 3_200)) // 400)
Ids = dict[int, list[int]]
"""Tokens of each completion."""


@dataclass(frozen=True)
class Wish:
    """A request to make."""

    prompt: int
    is_sampled: bool = False
    max_tokens: int = MAX_TOKENS
    n: int = MAX_COMPLETIONS
    priority: int = 0
    pause: int = 0
    """Steps before it comes."""
    late: int = 0
    """Steps that each of its pictures takes."""


wishes = st.builds(
    Wish,
    prompt=st.integers(0, NUM_PROMPTS - 1),
    is_sampled=st.booleans(),
    max_tokens=st.integers(1, MAX_TOKENS),
    n=st.sampled_from([1, 1, 2, 3]),
    priority=st.sampled_from([0, 0, 1]),
    pause=st.integers(0, 6),
    late=st.integers(0, 5),
)


class Model:
    """A random Pixtral with the features of all prompts, and what each gets alone in plain torch."""

    def __init__(self, harness: Harness, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self._harness = harness
        self.features = [harness._encode(prompt) for prompt in prompts]
        self._alone = {
            wish: self.run([wish], self.engine(TorchCompute))[0]
            for wish in (Wish(prompt, sampled) for prompt in range(len(prompts)) for sampled in (False, True))
        }

    def engine(
        self,
        make_compute: MakeCompute,
        *,
        num_blocks: int = 64,
        block_size: int = 8,
        chunk: int = 512,
        max_num_requests: int = MAX_COMPLETIONS,
        caching: bool = False,
        overlap: bool = False,
    ) -> Engine:
        """A new engine over the model."""
        # Our own kernels take the weights out of the model, so each has its own.
        model = DecoderModel.load(self._harness.checkpoint, device=CPU, types=WeightTypes(torch.float32))
        cache = KVCache(model.config, num_blocks=num_blocks, block_size=block_size, device=CPU, dtype=torch.float32)
        runner = DecoderRunner(model, cache, make_compute(model, cache), queue=OnThread() if overlap else None)
        return Engine(
            config=SchedulerConfig(
                max_num_batched_tokens=max(chunk, max_num_requests),
                max_num_requests=max_num_requests,
                max_model_len=1024,
            ),
            num_blocks=num_blocks,
            block_size=block_size,
            runner=runner,
            launcher=runner if overlap else None,
            hash_block=block_hash if caching else None,
        )

    def expected(self, wish: Wish) -> Ids:
        """What a wish gets by its plain run."""
        alone = self._alone[Wish(wish.prompt, wish.is_sampled)]
        return {index: alone[index][: wish.max_tokens] for index in range(wish.n)}

    def run(self, workload: Sequence[Wish], engine: Engine) -> list[Ids]:
        """Run all wishes in one engine; the ids of each."""
        heard: list[Ids] = [defaultdict(list) for _ in workload]
        due: dict[ImageRef, int] = {}
        waiting = [(sum(wish.pause for wish in workload[: i + 1]), i) for i, wish in enumerate(workload)]
        now = 0
        while waiting or engine.has_work or due:
            now += 1
            assert now < 5000, "it does not end"
            while waiting and waiting[0][0] <= now:
                _, number = waiting.pop(0)
                for image in engine.submit(self._request(workload[number], number)):
                    due[ImageRef(str(number), image)] = now + workload[number].late
            for ref in [ref for ref, time in due.items() if time <= now]:
                del due[ref]
                engine.features_arrived(ref.request_id, ref.image_index, self._features(workload, ref), index=ref.index)
            output = engine.step()
            assert not output.failed
            for ref in output.consumed:
                due.pop(ref, None)
            for wanted in output.wanted:
                for ref in [ref for ref in due if (ref.request_id, ref.index) == (wanted.request_id, wanted.index)]:
                    del due[ref]
                late = workload[int(wanted.request_id)].late
                for image in wanted.image_indices:
                    due[ImageRef(wanted.request_id, image, wanted.index)] = now + late
            for token in output.tokens:
                heard[int(token.request_id)][token.index].append(token.token_id)
            engine.check_integrity()
        stats = engine.stats()
        assert stats.num_free_blocks == stats.num_blocks
        return heard

    def _request(self, wish: Wish, number: int) -> Request:
        request = self._harness._request(number, self.prompts[wish.prompt])
        sampling = replace(
            request.sampling, max_tokens=wish.max_tokens, n=wish.n, temperature=float(wish.is_sampled), seed=wish.prompt
        )
        return replace(request, priority=wish.priority, sampling=sampling)

    def _features(self, workload: Sequence[Wish], ref: ImageRef) -> ImageFeatures:
        return self.features[workload[int(ref.request_id)].prompt][ref.image_index]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    shape = IMAGE_SHAPES[0]
    directory = save(random_pixtral(shape), tmp_path_factory.mktemp("pixtral"))
    prompts = mixed_prompts(shape.patch)
    twin = Prompt(token_ids=[*prompts[1].token_ids, *range(30, 47)], images=prompts[1].images)
    return Model(Harness(directory, num_blocks=8, block_size=8, token_budget=8), [*prompts, twin])


def test_sampled_completions_differ(model: Model) -> None:
    """Else the property below would say little about them."""
    for prompt in range(NUM_PROMPTS):
        ids = model.expected(Wish(prompt, is_sampled=True))
        assert len({tuple(each) for each in ids.values()}) == MAX_COMPLETIONS


@pytest.mark.parametrize("make_compute", COMPUTES)
def test_steps_that_are_planned_ahead_give_the_ids_of_the_plain_run(model: Model, make_compute: MakeCompute) -> None:
    """Nearly all steps of these; the twin's first token comes from a picture."""
    workload = [Wish(prompt, is_sampled=bool(prompt % 2), n=1) for prompt in (0, 1, 3, 5)]
    engine = model.engine(make_compute, max_num_requests=4, overlap=True)
    assert model.run(workload, engine) == [model.expected(wish) for wish in workload]
    stats = engine.stats()
    assert stats.num_steps_ahead > stats.num_steps // 2


@pytest.mark.parametrize("make_compute", COMPUTES)
@given(
    workload=st.lists(wishes, min_size=2, max_size=6),
    chunk=st.sampled_from([1, 2, 3, 7, 16, 50, 129, 512]) | st.integers(1, 512),
    max_num_requests=st.integers(1, 6),
    block_size=st.sampled_from([1, 4, 8]),
    spare_blocks=st.integers(0, 12),
    caching=st.booleans(),
    overlap=st.booleans(),
)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=not NIGHTLY, database=None)
def test_any_combination_gives_the_ids_of_the_plain_run(
    model: Model,
    make_compute: MakeCompute,
    workload: list[Wish],
    chunk: int,
    max_num_requests: int,
    block_size: int,
    spare_blocks: int,
    caching: bool,
    overlap: bool,
) -> None:
    workload = [replace(wish, n=min(wish.n, max_num_requests)) for wish in workload]
    largest = max(
        len(model.prompts[wish.prompt].token_ids) + wish.n * (wish.max_tokens + block_size) for wish in workload
    )
    engine = model.engine(
        make_compute,
        num_blocks=-(-largest // block_size) + spare_blocks,
        block_size=block_size,
        chunk=chunk,
        max_num_requests=max_num_requests,
        caching=caching,
        overlap=overlap,
    )
    assert model.run(workload, engine) == [model.expected(wish) for wish in workload]
