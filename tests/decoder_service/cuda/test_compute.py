"""The CUDA arithmetic through the engine against transformers, in Triton's interpreter."""

from pathlib import Path

import pytest
import torch

from decoder_service.compute import Compute
from decoder_service.cuda.compute import CudaCompute
from decoder_service.cuda.decode_graphs import batch_sizes
from decoder_service.decoder_model import DecoderModel
from decoder_service.kv_cache import KVCache
from tests.parity.harness import Harness
from tests.replayer import Replayer
from tests.tiny_models import Prompt, Shape, image_tokens, random_pixtral, reference_logits, save


@pytest.mark.parametrize(("window", "token_budget"), [(9, 7), (None, 200)])
def test_mixed_requests_get_the_reference_logits_and_ids(window: int | None, token_budget: int, tmp_path: Path) -> None:
    shape = Shape(name="pixtral-like", rope_theta=1e9, heads=6, kv_heads=2, head_dim=12, window=window)
    model = random_pixtral(shape)
    replayer = Replayer()

    def make(loaded: DecoderModel, kv_cache: KVCache) -> Compute:
        return CudaCompute(loaded, kv_cache, recorder=replayer, max_num_requests=6, max_model_len=1024)

    harness = Harness(
        save(model, tmp_path), num_blocks=40, block_size=8, token_budget=token_budget, make_compute=make, new_tokens=6
    )
    picture = torch.randn(3, 3 * shape.patch, 4 * shape.patch, generator=torch.Generator().manual_seed(1))
    text = list(range(20, 38))
    prompts = [
        Prompt(token_ids=text),
        Prompt(token_ids=[1, *image_tokens(3, 4), *text[:5]], images=[picture]),
        Prompt(token_ids=text[:2]),
    ]
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        torch.testing.assert_close(logits, reference_logits(model, prompt, ids), atol=1e-4, rtol=0)
    assert replayer.num_runs > 0


def test_recorded_sizes_reach_the_most_and_rise() -> None:
    for most in (1, 3, 6, 64, 100, 256, 400):
        sizes = batch_sizes(most)
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] == most
