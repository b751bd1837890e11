"""The decoder's own small steps between products, each one Triton kernel instead of several of torch's.

Knows tensors. Does not know weights' names, requests or graphs. Arithmetic is in fp32 and rounded once, at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoder_service.model.fp8 import FP8, FP8_MAX, MIN_SCALE

_MOST_HEADS = 8
"""That one program rotates; one alone would give a warp so little to do that starting it would take the time."""


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [num_tokens, width] in 8-bit floats, and their scales in fp32 [num_tokens, 1]."""
    num_tokens, width = x.shape
    out = torch.empty_like(x, dtype=FP8)
    scale = x.new_empty((num_tokens, 1), dtype=torch.float32)
    _round_rows[(num_tokens,)](
        x, out, scale, WIDTH=width, BLOCK=min(triton.next_power_of_2(width), 4096), MAX=FP8_MAX, MIN_SCALE=MIN_SCALE
    )
    return out, scale


def scale_sums(sums: Tensor, row_scale: Tensor, column_scale: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Sums fp32 [num_rows, width] times scales of rows [num_rows, 1] and of columns [width, 1], rounded to `dtype`."""
    num_rows, width = sums.shape
    out = torch.empty_like(sums, dtype=dtype)
    _scale_sums[(num_rows, triton.cdiv(width, 1024))](
        sums, row_scale, column_scale, out, WIDTH=width, BLOCK=1024, num_warps=4
    )
    return out


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot_mapping: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    *,
    num_heads: int,
) -> Tensor:
    """Rotate queries in place, and put rotated keys and the values into their slots.

    Takes qkv [num_tokens, (num_heads + 2 * num_key_value_heads) * head_dim]; cos and sin fp32
    [num_tokens, head_dim / 2]; slot_mapping [num_tokens], where a negative slot stores nothing; key_blocks and
    value_blocks [num_blocks, block_size, num_key_value_heads, head_dim]. Returns the queries, a view
    [num_tokens, num_heads, head_dim] of qkv.
    """
    num_kv_heads, head_dim = key_blocks.shape[2:]
    heads = min(triton.next_power_of_2(num_kv_heads), _MOST_HEADS)
    programs = triton.cdiv(num_heads, heads) + 2 * triton.cdiv(num_kv_heads, heads)
    _rotate_and_store[(len(qkv), programs)](
        qkv,
        cos,
        sin,
        slot_mapping,
        key_blocks,
        value_blocks,
        qkv.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEADS=heads,
        HALF=head_dim // 2,
        BLOCK=triton.next_power_of_2(head_dim // 2),
        LIMIT=FP8_MAX if key_blocks.dtype == FP8 else 0.0,
        num_warps=4,
    )
    query: Tensor = qkv[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim))
    return query


@triton.jit
def _round_rows(
    x: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX: tl.constexpr,
    MIN_SCALE: tl.constexpr,
) -> None:
    """One row, read twice: for its scale, then from the cache to be rounded."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    highest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        value = tl.load(x + row * WIDTH + start + columns, mask=start + columns < WIDTH, other=0.0)
        highest = tl.maximum(highest, tl.abs(value.to(tl.float32)))
    own = tl.maximum(tl.max(highest, 0) / MAX, MIN_SCALE)
    tl.store(scale + row, own)
    for start in range(0, WIDTH, BLOCK):
        is_in = start + columns < WIDTH
        value = tl.load(x + row * WIDTH + start + columns, mask=is_in, other=0.0).to(tl.float32) / own
        tl.store(out + row * WIDTH + start + columns, value.to(out.dtype.element_ty), mask=is_in)


@triton.jit
def _scale_sums(
    sums: tl.tensor,
    row_scale: tl.tensor,
    column_scale: tl.tensor,
    out: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = columns < WIDTH
    value = tl.load(sums + row * WIDTH + columns, mask=is_in, other=0.0)
    value = value * tl.load(row_scale + row) * tl.load(column_scale + columns, mask=is_in, other=0.0)
    tl.store(out + row * WIDTH + columns, value.to(out.dtype.element_ty), mask=is_in)


# Slots are part of a larger tensor, wherever they begin in it.
@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def _rotate_and_store(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    slot_mapping: tl.tensor,
    key_blocks: tl.tensor,
    value_blocks: tl.tensor,
    row_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
) -> None:
    """Some heads of one token, all of one kind; programs of queries come first, then those of keys, then of values.

    What is over a limit, if there is one, is stored as the limit.
    """
    token, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    QUERIES: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    KEYS: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    is_query, is_turned = program < QUERIES, program < QUERIES + KEYS
    own = tl.where(is_query, program, tl.where(is_turned, program - QUERIES, program - QUERIES - KEYS)) * HEADS
    own = own + tl.arange(0, HEADS)
    head = own + tl.where(is_query, 0, tl.where(is_turned, NUM_HEADS, NUM_HEADS + NUM_KV_HEADS))
    dims = tl.arange(0, BLOCK)
    is_dim = dims < HALF
    is_in = (own < tl.where(is_query, NUM_HEADS, NUM_KV_HEADS))[:, None] & is_dim[None, :]
    at = qkv + token * row_stride + head[:, None] * 2 * HALF + dims[None, :]
    first = tl.load(at, mask=is_in, other=0.0)
    second = tl.load(at + HALF, mask=is_in, other=0.0)
    if is_turned:
        c = tl.load(cos + token * HALF + dims, mask=is_dim, other=0.0)[None, :]
        s = tl.load(sin + token * HALF + dims, mask=is_dim, other=0.0)[None, :]
        x, y = first.to(tl.float32), second.to(tl.float32)
        first = (x * c - y * s).to(first.dtype)
        second = (y * c + x * s).to(second.dtype)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if is_query:
        tl.store(at, first, mask=is_in)
        tl.store(at + HALF, second, mask=is_in)
    elif slot >= 0:
        place = (slot * NUM_KV_HEADS + own)[:, None] * 2 * HALF + dims[None, :]
        to = key_blocks + place if is_turned else value_blocks + place
        # Names of their own, as a name keeps one type through all branches.
        low, high = first.to(tl.float32), second.to(tl.float32)
        if LIMIT > 0:
            low = tl.clamp(low, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
            high = tl.clamp(high, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        tl.store(to, low.to(to.dtype.element_ty), mask=is_in)
        tl.store(to + HALF, high.to(to.dtype.element_ty), mask=is_in)
