"""Whether the CUDA path computes what the plain torch path computes, on the device, before anything is timed."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu.models import DECODER_12B, forward_batch, kv_cache_for, random_decoder
from common.model.config import MistralConfig
from common.model.graph_recorder import CudaGraphRecorder
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.fp8 import FP8, quantize_layers
from decoder_service.model.kv_cache import KVCache

_MIXTURES = {
    "single tokens": ([1, 1, 1], [1, 700, 65]),
    "a prompt": ([300], [300]),
    "chunks and single tokens": ([1, 130, 1, 7], [40, 900, 4000, 7]),
}


@torch.inference_mode()
def correctness_rows(device: torch.device) -> Iterator[dict[str, object]]:
    """A row per type and mixture: the largest difference of logits between the paths, over their spread."""
    config = _small()
    for dtype, in_eight_bits in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        model = random_decoder(config, device, dtype)
        if in_eight_bits:
            quantize_layers(model.decoder)
        for recorder in (None, CudaGraphRecorder(device)):
            for name, (new, lengths) in _MIXTURES.items():
                cache = kv_cache_for(model, sum(lengths), FP8 if in_eight_bits else dtype)
                twin = _copy(cache)
                fast = CudaCompute(model, cache, recorder=recorder, max_num_requests=8, max_model_len=8192)
                got = _logits(fast, new, lengths, device)
                want = _logits(TorchCompute(model, twin), new, lengths, device)
                error = float((got - want).abs().max() / want.std())
                limit = 1e-3 if dtype == torch.float32 else 0.15
                yield {
                    "case": f"{name}, {'fp8' if in_eight_bits else dtype}, graphs {recorder is not None}",
                    "error / spread": error,
                    "limit": limit,
                    "right": error < limit,
                }


def _small() -> MistralConfig:
    return replace(DECODER_12B, hidden_size=1024, num_hidden_layers=4, feed_forward_length=2816, vocab_size=4096)


def _copy(cache: KVCache) -> KVCache:
    twin = copy.copy(cache)
    twin.key_blocks = [blocks.clone() for blocks in cache.key_blocks]
    twin.value_blocks = [blocks.clone() for blocks in cache.value_blocks]
    return twin


def _logits(compute: Compute, new: list[int], lengths: list[int], device: torch.device) -> torch.Tensor:
    forward = forward_batch(new, lengths, device)
    return compute.logits(compute.hidden(compute.embed(forward.token_ids), forward)[forward.logits_indices])
