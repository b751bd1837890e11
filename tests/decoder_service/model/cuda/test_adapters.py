"""Requests with adapters by the CUDA arithmetic, in Triton's interpreter; those without go on as recorded passes."""

from pathlib import Path

import torch

from decoder_service.adapters.adapter_ref import NO_ADAPTER, AdapterRef
from decoder_service.model.compute import Compute
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel
from tests.parity.adapters import merged, random_adapter, with_adapters
from tests.parity.harness import Harness
from tests.replayer import Replayer
from tests.tiny_models import Prompt, Shape, random_text_model, reference_logits, save

SHAPE = Shape(name="nemo-like", rope_theta=1e9, heads=6, kv_heads=2, head_dim=12)


def test_each_request_gets_the_logits_of_its_own_adapter(tmp_path: Path) -> None:
    model = random_text_model(SHAPE)
    adapters = [random_adapter(model, seed=1), random_adapter(model, seed=2, modules=("self_attn.k_proj",))]
    refs = [AdapterRef(index, adapter.digest) for index, adapter in enumerate(adapters)]
    replayer = Replayer()

    def make(loaded: DecoderModel, kv_cache: KVCache) -> Compute:
        return CudaCompute(loaded, kv_cache, recorder=replayer, max_num_requests=6, max_model_len=1024)

    harness = Harness(
        save(model, tmp_path),
        num_blocks=40,
        block_size=8,
        token_budget=9,
        make_compute=with_adapters(make, adapters),
        new_tokens=4,
    )
    prompts = [Prompt(token_ids=[*range(20, 20 + length)]) for length in (12, 12, 12, 3)]
    chosen, models = [refs[1], NO_ADAPTER, refs[0], refs[1]], [model, *(merged(model, each) for each in adapters)]
    for prompt, ref, (ids, logits) in zip(prompts, chosen, harness.run(prompts, adapters=chosen), strict=True):
        torch.testing.assert_close(logits, reference_logits(models[ref.index + 1], prompt, ids), atol=2e-4, rtol=0)
    num_runs = replayer.num_runs
    harness.run(prompts[1:2])
    assert replayer.num_runs > num_runs
