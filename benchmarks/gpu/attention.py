"""Case G3: paged attention alone, in bytes a second, by all that compute it, beside torch's over contiguous keys."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.models import BLOCK_SIZE, attention_shape, forward_batch
from common.model.settings import AttentionBackend
from decoder_service.model.cuda.attention import PagedAttention, Spans
from decoder_service.model.cuda.attention_choice import choose_attention
from decoder_service.model.cuda.paged_attention import DEFAULT_LAUNCH, AttentionLaunch
from decoder_service.model.cuda.triton_attention import TritonAttention
from decoder_service.model.fp8 import FP8

_MOST_KEYS = 2**20
_OTHERS = (AttentionBackend.TORCH, AttentionBackend.FLASHINFER)
_SHAPE = attention_shape(torch.bfloat16, torch.bfloat16)


_LAUNCHES = (
    DEFAULT_LAUNCH,
    AttentionLaunch(num_stages=3, programs=2),
    AttentionLaunch(num_stages=3, programs=4),
    AttentionLaunch(programs=2),
    AttentionLaunch(num_keys=32, programs=5),
    AttentionLaunch(num_keys=32, num_stages=7, programs=4),
    AttentionLaunch(num_keys=128, num_warps=8, num_stages=3, programs=2),
)
_LAUNCHED = ((1, 16384), (32, 1024), (32, 4096), (128, 4096))


@torch.inference_mode()
def launch_rows(device: torch.device, ceilings: Ceilings) -> Iterator[dict[str, object]]:
    """A row for each way to launch our kernel and type of keys: the share of the limit by batch size and context."""
    for kv_dtype in (torch.bfloat16, FP8):
        shape = replace(_SHAPE, kv_dtype=kv_dtype)
        for launch in _LAUNCHES:
            ours = TritonAttention(shape, device, launch)
            shares: dict[str, object] = {}
            try:
                for batch, context in _LAUNCHED:
                    time = _seconds(ours, batch, context, device, kv_dtype)
                    shares[f"{batch} x {context}"] = _num_bytes(batch, context, kv_dtype) / time / ceilings.memory_bytes
            except RuntimeError as error:  # One that asks for more than the device has, say.
                shares["not run"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            yield {"case": f"{kv_dtype}, {launch}", **shares}


@torch.inference_mode()
def attention_rows(device: torch.device, ceilings: Ceilings) -> Iterator[dict[str, object]]:
    """A row for each that cannot be had, which says why; then one per batch size and context.

    Small ones are read from the device's cache, where they are from the run before, and faster than any memory.
    """
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    ours = choose_attention(AttentionBackend.TRITON, _SHAPE, device)
    others: list[PagedAttention] = []
    for backend in _OTHERS:
        try:
            others.append(choose_attention(backend, _SHAPE, device))
        except ValueError as error:
            yield {"case": f"attention by {backend.value}", "not run": str(error)}
    for batch in (1, 32, 128):
        for context in (1024, 4096, 16384):
            if batch * context > _MOST_KEYS:
                continue
            time = _seconds(ours, batch, context, device)
            num_bytes = _num_bytes(batch, context, _SHAPE.kv_dtype)
            yield {
                "case": f"attention {batch} x {context}",
                "us": time * 1e6,
                "MB": num_bytes / 1e6,
                "GB/s": num_bytes / time / 1e9,
                "share of limit": num_bytes / time / ceilings.memory_bytes,
                "in the cache": num_bytes < cache_bytes,
                "torch's on contiguous keys / ours": _contiguous_seconds(batch, context, device) / time,
                **{f"{other.name} / ours": _seconds(other, batch, context, device) / time for other in others},
            }


def _num_bytes(batch: int, context: int, kv_dtype: torch.dtype) -> int:
    return 2 * batch * context * _SHAPE.num_key_value_heads * _SHAPE.head_dim * kv_dtype.itemsize


def _seconds(
    attention: PagedAttention, batch: int, context: int, device: torch.device, kv_dtype: torch.dtype = _SHAPE.kv_dtype
) -> float:
    """Of one layer, planned before."""
    forward = forward_batch([1] * batch, [context] * batch, device)
    blocks = (batch * context // BLOCK_SIZE + 1, BLOCK_SIZE, _SHAPE.num_key_value_heads, _SHAPE.head_dim)
    keys, values = (_random(blocks, device).to(kv_dtype) for _ in range(2))
    query = _random((batch, _SHAPE.num_heads, _SHAPE.head_dim), device)
    attend = attention.plan(
        Spans(
            block_tables=forward.block_tables.int(),
            query_starts=torch.arange(batch + 1, device=device, dtype=torch.int32),
            seq_lens=forward.seq_lens_there.int(),
            query_lengths=forward.query_lengths,
            most_tokens=forward.seq_lens,
        )
    )
    return seconds(lambda: attend(query, keys, values), is_ahead=True)


def _contiguous_seconds(batch: int, context: int, device: torch.device) -> float:
    query = _random((batch, _SHAPE.num_heads, 1, _SHAPE.head_dim), device)
    keys, values = (_random((batch, _SHAPE.num_key_value_heads, context, _SHAPE.head_dim), device) for _ in range(2))
    return seconds(lambda: functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True), is_ahead=True)


def _random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)
