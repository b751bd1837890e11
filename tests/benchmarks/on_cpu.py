"""What the cases for a GPU are tried with on a CPU: a tiny decoder, our engine around a decoder, and a clock."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.gpu.models import random_decoder
from benchmarks.gpu.ours import OurEngine
from benchmarks.gpu.workloads import Workload
from benchmarks.pixtral_12b import DECODER_12B
from decoder_service.model.compute import TorchCompute
from decoder_service.model.weights import DecoderModel

CPU = torch.device("cpu")
TINY = replace(
    DECODER_12B,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_hidden_layers=2,
    feed_forward_length=96,
    vocab_size=1000,
)
"""As in the large shape the heads together are narrower than a row."""


def tiny_decoder(dtype: torch.dtype = torch.float32) -> DecoderModel:
    return random_decoder(TINY, CPU, dtype)


def engine_for(workload: Workload, model: DecoderModel | None = None, *, num_blocks: int | None = None) -> OurEngine:
    """Our engine with room for a workload, around the tiny decoder where no other is given."""
    return OurEngine(
        model or tiny_decoder(),
        TorchCompute,
        max_num_requests=len(workload.prompts),
        max_model_len=workload.max_len,
        num_blocks=num_blocks,
    )


def clock(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
