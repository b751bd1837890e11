"""Cases G1, G2 and G5: decode steps by batch, and prompts, against the measured limits."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.models import forward_batch, greedy_step, kv_cache_for
from benchmarks.gpu.workloads import CONTEXT
from benchmarks.operations import key_value_bytes, prompt_flops, weight_bytes
from common.model.graph_recorder import CudaGraphRecorder
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.weights import DecoderModel


@torch.inference_mode()
def decode_rows(
    model: DecoderModel, ceilings: Ceilings, batches: tuple[int, ...], *, layers: torch.dtype, keys: torch.dtype
) -> Iterator[dict[str, object]]:
    """A row per batch size: time of a step with and without recorded passes, and the share of the bytes' limit.

    The weights of the layers are of the type `layers`, keys and values of `keys`. A recorded step is timed as the
    service has it, which begins it while the one before runs; one without recorded passes with all that the host does.
    """
    cache = kv_cache_for(model, max(batches) * CONTEXT, keys)
    make = partial(CudaCompute, model, cache, max_num_requests=max(batches), max_model_len=4 * CONTEXT)
    forwards = {batch: forward_batch([1] * batch, [CONTEXT] * batch, model.device) for batch in batches}
    plain = make(recorder=None)
    plain_seconds = {batch: seconds(partial(greedy_step, plain, forward)) for batch, forward in forwards.items()}
    del plain  # Each has the weights joined for itself, and the other comes to have them alone.
    recorded = make(recorder=CudaGraphRecorder(model.device))
    for batch, forward in forwards.items():
        num_bytes = weight_bytes(model.config, model.dtype, layers=layers)
        num_bytes += key_value_bytes(model.config, batch * CONTEXT, keys)
        step = seconds(partial(greedy_step, recorded, forward), is_ahead=True)
        yield {
            "case": f"decode {batch} x {CONTEXT}",
            "ms": step * 1e3,
            "ms without graphs": plain_seconds[batch] * 1e3,
            "tokens/s": batch / step,
            "share of limit": num_bytes / ceilings.memory_bytes / step,
            "recorded": batch <= max(recorded.recorded_sizes, default=0),
            **({f"one row, {name}": value for name, value in recorded.one_row_figures.items()} if batch == 1 else {}),
        }


@torch.inference_mode()
def prefill_rows(model: DecoderModel, ceilings: Ceilings, lengths: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """A row per prompt length: operations a second of the layers against the measured rate of products."""
    compute = CudaCompute(
        model, kv_cache_for(model, max(lengths)), recorder=None, max_num_requests=1, max_model_len=max(lengths)
    )
    for length in lengths:
        forward = forward_batch([length], [length], model.device)
        time = seconds(partial(greedy_step, compute, forward), repeats=7)
        flops = prompt_flops(model.config, length)
        yield {
            "case": f"prefill {length}",
            "ms": time * 1e3,
            "tokens/s": length / time,
            "TFLOP/s": flops / time / 1e12,
            "share of limit": flops / time / ceilings.flops,
        }
