"""Real models tell the same tokens whether or not requests try some: greedy and drawn, by torch and by the kernels."""

from pathlib import Path

import pytest
import torch

from common.checkpoint.checkpoint import open_checkpoint
from common.model.weight_types import WeightTypes
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.model.compute import TorchCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.tiled_compute import TiledCompute
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.decoder_service.languages import Pairs
from tests.parity.harness import MakeCompute, native
from tests.tiny_models import VOCAB_SIZE, Shape, random_text_model, save

CPU = torch.device("cpu")
PHRASE = (5, 17, 99, 23, 42, 7, 61)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(
        random_text_model(Shape(name="small", hidden=48, heads=4, kv_heads=2)), tmp_path_factory.mktemp("model")
    )


def tokens_of(
    directory: Path, make_compute: MakeCompute, temperature: float, num_tries: int, matcher: Pairs | None = None
) -> dict[str, list[int]]:
    """What four requests at once are told; the prompts repeat themselves, as the completions of such models do."""
    model = DecoderModel.load(open_checkpoint(directory), device=CPU, types=WeightTypes(torch.float32))
    cache = KVCache(model.config, num_blocks=200, block_size=8, device=CPU, dtype=torch.float32)
    config = SchedulerConfig(
        max_num_batched_tokens=64, max_num_requests=4, max_model_len=512, num_speculative_tokens=num_tries
    )
    runner = DecoderRunner(model, cache, make_compute(model, cache))
    engine = Engine(config=config, num_blocks=200, block_size=8, runner=runner)
    for index in range(4):
        # A low temperature, as what a random model draws at a higher one never comes again.
        sampling = SamplingParams(max_tokens=90, temperature=temperature, seed=index, n=1 + index % 2)
        prompt = PHRASE * 5 + PHRASE[: 1 + index]
        engine.submit(
            Request(
                request_id=str(index),
                prompt_token_ids=prompt,
                sampling=sampling,
                arrival=index,
                matcher=matcher and matcher.fork(),
            )
        )
    told: dict[str, list[int]] = {}
    while engine.has_work:
        output = engine.step()
        for token in output.tokens:
            told.setdefault(f"{token.request_id}/{token.index}", []).append(token.token_id)
        assert {error.reason for _, error in output.failed} <= {"STRUCTURE_TOO_COMPLEX"}
        engine.check_integrity()
    stats = engine.stats()
    assert (stats.num_accepted_tokens > 4) == (num_tries > 0)
    assert stats.num_free_blocks == stats.num_blocks
    return told


@pytest.mark.parametrize("temperature", [0.0, 0.02])
@pytest.mark.parametrize("make_compute", [TorchCompute, TiledCompute, native])
def test_what_is_tried_changes_no_token(make_compute: MakeCompute, temperature: float, directory: Path) -> None:
    plain = tokens_of(directory, make_compute, temperature, 0)
    assert len(plain) == 6
    assert tokens_of(directory, make_compute, temperature, 6) == plain


def test_the_random_numbers_matter(directory: Path) -> None:
    """Else the test above would hold with any of them."""
    assert tokens_of(directory, native, 0.02, 0) != tokens_of(directory, native, 0.0, 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("make_compute", [TorchCompute, native])
def test_what_a_language_leaves_no_choice_about_is_tried_and_changes_no_token(
    make_compute: MakeCompute, temperature: float, directory: Path
) -> None:
    plain = tokens_of(directory, make_compute, temperature, 0, Pairs())
    assert len(plain) == 6
    for token_ids in plain.values():
        assert token_ids[1::2] == [(each + 1) % VOCAB_SIZE for each in token_ids[::2]]
    assert tokens_of(directory, make_compute, temperature, 6, Pairs()) == plain


@pytest.mark.parametrize("num_left", [6, 7])
def test_where_a_language_ends_a_request_is_told_the_same_and_why(num_left: int, directory: Path) -> None:
    plain = tokens_of(directory, native, 0.0, 0, Pairs(num_left))
    # Completions of one prompt end with the first of them.
    assert {len(token_ids) for token_ids in plain.values()} == {num_left}
    assert tokens_of(directory, native, 0.0, 6, Pairs(num_left)) == plain
