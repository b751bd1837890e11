"""Makes the engine of a service from its settings: weights, KV cache, runner and scheduler.

Knows which part needs which. Does not know gRPC, tokens or pictures; whoever wants the engine alone uses this.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch

from common.checkpoint.checkpoint import Checkpoint
from common.checkpoint.layout import Part
from common.features.feature_spec import VALUE_TYPES
from common.model.config import PixtralConfig, PixtralVisionConfig
from common.model.devices import find_device, find_dtype
from common.model.settings import KVCacheDtype, Quantize
from common.model.weight_types import WeightTypes
from common.native.opening import weight_types
from common.process import give_memory_back
from decoder_service.adapters.adapter import Adapter
from decoder_service.cache.block_hash import block_hash
from decoder_service.config import DecoderConfig, EngineSettings
from decoder_service.engine.engine import Engine
from decoder_service.model.compute_choice import choose_compute, choose_kernels, log_compute
from decoder_service.model.device_guard import GuardedRunner
from decoder_service.model.fp8 import FP8, check_fp8
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.memory import check_num_blocks, plan_num_blocks
from decoder_service.model.run_config import RunConfig, make_run_config
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.step_cost import MOST as MOST_DOUBLING_TOKENS
from decoder_service.model.step_cost import doubling_tokens
from decoder_service.model.step_queue import AtOnce, OnThread
from decoder_service.model.weights import DecoderModel
from decoder_service.scheduling.scheduler_config import SchedulerConfig

_log = logging.getLogger(__name__)

_PARTS = (Part.DECODER, Part.PROJECTOR)
_CUDA_DOUBLING_TOKENS = 200
"""How many tokens a GPU computes, about, in the time in which it reads all weights."""
_IDLE_PROMPTS = (64, 2048)
"""Tokens; of the second, attention is cut up otherwise."""
_CPU_SHARE, _CPU_LEAST = 0.3, 8
"""What each prompt adds to a step on a CPU where nothing is set: part of its time, and tokens at least."""


def build_run_config(config: DecoderConfig, checkpoint: Checkpoint) -> RunConfig:
    """What the engine runs with. Raises ValueError where settings and model do not fit."""
    device = find_device(config.model.device)
    has_fp8_keys = config.engine.kv_cache_dtype is KVCacheDtype.FP8
    if has_fp8_keys or config.engine.quantize is Quantize.FP8:
        check_fp8(device)
    if isinstance(checkpoint.config, PixtralConfig):
        _check_feature_bytes(config.engine.feature_bytes, checkpoint.config.vision)
    return make_run_config(
        checkpoint.text_config,
        dtype=find_dtype(config.model.dtype, device),
        device=device,
        max_seq_len=config.engine.max_model_len,
        block_size=config.engine.block_size,
        kv_dtype=FP8 if has_fp8_keys else None,
    )


def _check_feature_bytes(feature_bytes: int, vision: PixtralVisionConfig) -> None:
    """Raise ValueError where a picture of the largest size never had room."""
    # In the smallest type that there is; the vision service says which one it sends only when it is met.
    size = min(kind.size for kind in VALUE_TYPES.values())
    needed = (vision.image_size // vision.patch_size) ** 2 * vision.vision_hidden_size * size
    if needed > feature_bytes:
        raise ValueError(f"--feature-bytes {feature_bytes} is less than the features of one picture need, {needed}")


def build_engine(
    config: DecoderConfig, checkpoint: Checkpoint, run_config: RunConfig, adapters: tuple[Adapter, ...] = ()
) -> Engine:
    """Load the weights, take memory for the KV cache, and warm up. Raises CheckpointError."""
    engine = config.engine
    # Before the weights, as kernels take them as they are stored.
    kernels = choose_kernels(config.model, run_config, quantize=engine.quantize)
    model = _load_model(checkpoint, run_config, types=weight_types(kernels.library, run_config.dtype), engine=engine)
    model = replace(model, adapters=adapters)
    # Before the memory that is left is looked at, as weights may move once more.
    make_compute = choose_compute(
        model,
        config.model,
        kernels,
        max_num_requests=engine.max_num_requests,
        max_model_len=run_config.max_seq_len,
        quantize=engine.quantize,
        attention=engine.attention_backend,
    )
    num_blocks = _num_blocks(engine, run_config, dtype=model.dtype, has_adapters=bool(adapters))
    kv_cache = _make_kv_cache(run_config, num_blocks)
    compute = make_compute(kv_cache)
    log_compute(compute, kv_cache, config.model, quantize=engine.quantize, why_no_kernels=kernels.why_not)
    give_memory_back()
    is_cpu = run_config.device.type == "cpu"
    overlap = engine.has_overlap(on_cpu=is_cpu)
    runner = DecoderRunner(model, kv_cache, compute, queue=OnThread() if overlap and is_cpu else AtOnce())
    # What is set up at first use, the first request must not pay for.
    runner.run_idle(2)
    if not is_cpu:  # Else the first prompts would wait for a compiler: of few tokens, and of few behind many.
        for seq_len in _IDLE_PROMPTS:
            runner.run_idle_prompt(min(_IDLE_PROMPTS[0], run_config.max_seq_len), min(seq_len, run_config.max_seq_len))
    guarded = GuardedRunner(runner)
    measure = cache(partial(doubling_tokens, runner.run_idle))
    mixed_tokens = num_mixed_tokens(engine, run_config.device, measure=measure)
    _log.info("prompts beside next tokens", extra={"max_num_mixed_tokens": mixed_tokens or "no limit"})
    num_doubling_tokens = measure() if is_cpu and engine.num_speculative_tokens else _CUDA_DOUBLING_TOKENS
    if engine.num_speculative_tokens:
        tries = {"num_speculative_tokens": engine.num_speculative_tokens, "num_doubling_tokens": num_doubling_tokens}
        _log.info("tokens tried ahead", extra=tries)
    scheduler = SchedulerConfig(
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_mixed_tokens=mixed_tokens,
        max_step_stretch=engine.max_step_stretch,
        max_num_requests=engine.max_num_requests,
        max_model_len=run_config.max_seq_len,
        num_speculative_tokens=engine.num_speculative_tokens,
        num_doubling_tokens=num_doubling_tokens,
        num_spare_blocks=math.ceil(engine.watermark * num_blocks),
    )
    return Engine(
        config=scheduler,
        num_blocks=num_blocks,
        block_size=engine.block_size,
        runner=guarded,
        launcher=guarded if overlap else None,
        hash_block=block_hash if engine.prefix_caching else None,
        compute=compute.name,
    )


def _load_model(
    checkpoint: Checkpoint, run_config: RunConfig, *, types: WeightTypes, engine: EngineSettings
) -> DecoderModel:
    begin = time.monotonic()
    in_fp8 = engine.quantize is Quantize.FP8
    model = DecoderModel.load(checkpoint, device=run_config.device, types=types, in_fp8=in_fp8)
    num_bytes = sum(entry.stored.num_bytes for part in _PARTS for entry in checkpoint.entries(part))
    _log.info("weights loaded", extra={"gigabytes": num_bytes / 1e9, "seconds": round(time.monotonic() - begin, 3)})
    return model


def _make_kv_cache(run_config: RunConfig, num_blocks: int) -> KVCache:
    params, device = run_config.kv_params, run_config.device
    extra = {
        "num_blocks": num_blocks,
        "block_size": params.block_size,
        "tokens": num_blocks * params.block_size,
        "mebibytes": num_blocks * params.bytes_per_block >> 20,
        "device": str(device),
        "dtype": str(params.dtype).removeprefix("torch."),
    }
    cache = KVCache(
        run_config.text, num_blocks=num_blocks, block_size=params.block_size, device=device, dtype=params.dtype
    )
    _log.info("KV cache", extra=extra)
    return cache


def _num_blocks(engine: EngineSettings, run_config: RunConfig, *, dtype: torch.dtype, has_adapters: bool) -> int:
    """Raises ValueError where memory has no room for what is asked for, or for one request of the greatest length."""
    if engine.num_blocks is not None:
        return check_num_blocks(run_config, engine.num_blocks)
    return plan_num_blocks(
        run_config,
        dtype=dtype,
        memory_fraction=engine.memory_fraction,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_requests=engine.max_num_requests,
        max_num_tries=max_num_tries(engine),
        has_adapters=has_adapters,
    )


def max_num_tries(engine: EngineSettings) -> int:
    """Tokens that all requests of a step try at most: what makes it twice as long, which is measured only later."""
    of_requests = engine.max_num_requests * engine.num_speculative_tokens
    return min(of_requests, engine.max_num_batched_tokens, max(MOST_DOUBLING_TOKENS, _CUDA_DOUBLING_TOKENS))


def num_mixed_tokens(engine: EngineSettings, device: torch.device, *, measure: Callable[[], int]) -> int | None:
    """What a prompt may have in a step beside others' next tokens, besides as many as those are; None for no limit.

    Where only a stretch is set, that is what doubles the time of a step: on a CPU by `measure`. Without either a GPU
    has no limit: it computes a whole step of prompts in few times what it needs for one token.
    """
    is_cpu = device.type == "cpu"
    if engine.max_num_mixed_tokens is not None:
        return engine.max_num_mixed_tokens
    if engine.max_step_stretch is not None:
        return measure() if is_cpu else _CUDA_DOUBLING_TOKENS
    return max(_CPU_LEAST, round(_CPU_SHARE * measure())) if is_cpu else None
