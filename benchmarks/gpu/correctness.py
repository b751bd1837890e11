"""Whether the CUDA path computes what the plain torch path computes, on the device, before anything is timed."""

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu.models import attention_shape, forward_batch, kv_cache_for, random_decoder
from benchmarks.gpu.report import Row
from benchmarks.gpu.row_error import row_error
from benchmarks.pixtral_12b import DECODER_12B
from common.model.config import MistralConfig
from common.model.graph_recorder import CudaGraphRecorder, GraphRecorder
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.cuda.attention_choice import largest_error
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.cuda.pass_choice import Clock
from decoder_service.model.cuda.products import join
from decoder_service.model.cuda.triton_attention import TritonAttention
from decoder_service.model.fp8 import FEW_ROWS, FP8, Fp8Linear, quantize_layers, round_rows
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel

_MIXTURES = {
    "one token": ([1], [700]),
    "single tokens": ([1, 1, 1], [1, 700, 65]),
    "a prompt": ([300], [300]),
    "chunks and single tokens": ([1, 130, 1, 7], [40, 900, 4000, 7]),
}
_MOST = 8
"""Requests that passes are recorded for"""
_TYPES = ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, FP8))
"""Of what is computed with, and of keys and values; the latter in 8 bits go with weights in 8 bits."""
_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.06, FP8: 0.3}
"""Of a row of logits, by the type of keys and values: some two to three times what rounding alone was seen to do. A
number that one path rounds up and the other down in 8 bits is an eighth of itself apart."""
_ATTENTION_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 8 * torch.finfo(torch.bfloat16).eps}
"""Of attention alone, of numbers near 1, by the type of queries"""

_PRODUCT_LIMIT = 0.02
"""Of a row in bfloat16 whose operands are the same on both sides"""


@torch.inference_mode()
def attention_checks(device: torch.device) -> Iterator[Row]:
    """How far rows of attention alone are apart."""
    for dtype, keys in _TYPES:
        for window in (None, 50):
            shape = attention_shape(dtype, keys, window=window)
            measure = partial(largest_error, TritonAttention(shape, device), shape, device)
            yield checked(f"attention, {dtype}, keys {keys}, window {window}", _ATTENTION_LIMITS[dtype], measure)


@torch.inference_mode()
def product_checks(device: torch.device) -> Iterator[Row]:
    """How far rows of products in 8 bits are apart."""
    for width, num_outputs in ((DECODER_12B.hidden_size, 28672), (DECODER_12B.feed_forward_length, 5120)):
        for num_rows in (1, 128, FEW_ROWS, FEW_ROWS + 1, 4096):
            case = f"a product in 8 bits, {num_rows} rows, {width} to {num_outputs}"
            yield checked(case, _PRODUCT_LIMIT, partial(_product_error, num_rows, width, num_outputs, device))


@torch.inference_mode()
def pass_checks(device: torch.device, dtype: torch.dtype, keys: torch.dtype) -> Iterator[Row]:
    """How far whole passes are apart, launched kernel by kernel and recorded, with these types."""
    model = random_decoder(_small(), device, dtype)
    if keys == FP8:
        quantize_layers(model.decoder)
    recorder = CudaGraphRecorder(device)
    for used in (None, recorder):
        for name, (new, lengths) in _MIXTURES.items():
            case = f"{name}, {dtype}, keys {keys}, graphs {used is not None}"
            yield checked(case, _LIMITS[keys], partial(_path_error, model, used, keys, new, lengths))
    case = f"one token by kernels of its own, {dtype}, keys {keys}"
    clock = partial(next, iter((1.0, 2.0)))
    yield checked(case, _LIMITS[keys], partial(_path_error, model, recorder, keys, [1], [700], lambda _: clock()))


CHECKS: Mapping[str, Callable[[torch.device], Iterator[Row]]] = {
    "attention": attention_checks,
    "products": product_checks,
    **{f"passes, {keys}": partial(pass_checks, dtype=dtype, keys=keys) for dtype, keys in _TYPES},
}
"""In the order in which they run; what loses the device costs the rest of its own alone."""


def checked(case: str, limit: float, measure: Callable[[], float]) -> Row:
    """A row that says whether an error is within its limit; what cannot be measured is not right, and says why."""
    try:
        error = measure()
    # Whatever it is, the other cases say more about it.
    except Exception as failure:
        traceback.print_exc()
        return {"case": case, "right": False, "error": f"{type(failure).__name__}: {failure}".splitlines()[0][:300]}
    return {"case": case, "error": error, "limit": limit, "right": error < limit}


def _path_error(
    model: DecoderModel,
    recorder: GraphRecorder | None,
    keys: torch.dtype,
    new: list[int],
    lengths: list[int],
    clock: Clock = lambda _: 0.0,
) -> float:
    """The distance of both paths; of one token the usual pass is taken unless the `clock` says otherwise."""
    cache = kv_cache_for(model, sum(lengths), keys)
    twin = _copy(cache)
    fast = CudaCompute(model, cache, recorder=recorder, max_num_requests=_MOST, max_model_len=8192, clock=clock)
    if recorder is not None and _MOST not in fast.recorded_sizes:
        raise RuntimeError(f"of the passes only {fast.recorded_sizes} were recorded")
    if recorder is not None and not fast.one_row_figures:
        raise RuntimeError("of one token only the usual pass could be recorded")
    got = _logits(fast, new, lengths, model.device)
    return row_error(got, _logits(TorchCompute(model, twin), new, lengths, model.device))


def _product_error(num_rows: int, width: int, num_outputs: int, device: torch.device) -> float:
    x = torch.randn(num_rows, width, device=device, dtype=torch.bfloat16)
    linear = torch.nn.Linear(width, num_outputs, bias=False, device=device, dtype=torch.bfloat16)
    module = Fp8Linear.of(linear)
    rows, scale = round_rows(x)
    want = (rows.float() * scale) @ (module.weight.float() * module.scale).T
    return row_error(join(module)(x), want)


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
