"""Paged attention as a Triton kernel: blocks are read in place, heads that share keys are computed together.

Knows tensors and launch shapes. Does not know requests, graphs or the model. One kernel serves prompts, single tokens
and any mixture. The keys of a tile may be split over several programs, whose parts a second kernel joins, so that few
requests with long contexts still fill the device ("Flash-Decoding", Dao et al. 2023); sums are kept as in
"FlashAttention" (arXiv 2205.14135). Without a GPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from decoder_service.model.cuda.tiles import AttentionTiles

_MIN_ROWS = 16
"""The tensor cores' products have at least so many rows."""
_LOG2_E = 1.4426950408889634
_MOST_LOT_BYTES = 2**15
"""Of keys and values that two lots are shared of: wider ones would leave room for one program on a multiprocessor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLaunch:
    """How a device runs the kernel, which changes its time and nothing else; to be chosen by measuring."""

    num_keys: int = 64
    """Keys that a program looks at at once"""
    num_warps: int = 4
    num_stages: int = 5
    """Of single tokens: with 3 and 4 a lot of keys and values is asked for when the one before was computed with, and
    waited for at once; with 5 it is on its way meanwhile"""
    prompt_stages: int = 3
    """Of prompts, where two programs on a multiprocessor, which is all that this leaves room for, wait in turns"""
    programs: int = 3
    """Of each multiprocessor, that keys are split for; of single tokens it has room for so many"""

    def stages_for(self, *, is_single: bool, lot_bytes: int) -> int:
        """Of a kernel for single tokens, or not, that reads so many bytes of keys and values at once."""
        return self.num_stages if is_single and lot_bytes <= _MOST_LOT_BYTES else self.prompt_stages


DEFAULT_LAUNCH = AttentionLaunch()


def triton_paged_attention(
    query: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    *,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    tiles: AttentionTiles,
    num_splits: int,
    scale: float,
    sliding_window: int | None,
    launch: AttentionLaunch = DEFAULT_LAUNCH,
) -> Tensor:
    """Causal attention of each request's newest rows over its blocks.

    Takes query [num_tokens, num_heads, head_dim], packed by request; key_blocks and value_blocks
    [num_blocks, block_size, num_key_value_heads, head_dim], in which the new rows already stand, in the query's type
    or in FP8; block_tables
    int32 [num_requests, max_blocks]; query_starts int32 [num_requests + 1], where each request's rows begin; seq_lens
    int32 [num_requests], lengths with the new rows. Returns the query's shape; rows of a request of
    length 0 become 0. Nothing here waits for the device.
    """
    num_tokens, num_heads, head_dim = query.shape
    block_size, num_kv_heads = key_blocks.shape[1:3]
    groups = num_heads // num_kv_heads
    out = torch.empty_like(query)
    parts = sums = out
    if num_splits > 1:
        parts = query.new_empty((num_splits, num_tokens, num_heads, head_dim), dtype=torch.float32)
        sums = query.new_empty((num_splits, num_tokens, num_heads, 2), dtype=torch.float32)
    block_d = triton.next_power_of_2(head_dim)
    _attend[(len(tiles.requests), num_kv_heads, num_splits)](
        query,
        key_blocks,
        value_blocks,
        block_tables,
        query_starts,
        seq_lens,
        tiles.requests,
        tiles.starts,
        parts,
        sums,
        scale * _LOG2_E,  # Powers of two cost less than powers of e.
        sliding_window or 0,
        num_tokens,
        num_splits,
        block_tables.stride(0),
        query.stride(0),
        key_blocks.stride(0),
        key_blocks.stride(1),
        key_blocks.stride(2),
        NUM_HEADS=num_heads,
        GROUPS=groups,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE_TOKENS=tiles.num_tokens,
        ROWS=max(_MIN_ROWS, triton.next_power_of_2(tiles.num_tokens * groups)),
        KEYS=launch.num_keys,
        BLOCK_D=block_d,
        IS_SPLIT=num_splits > 1,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=launch.num_warps,
        num_stages=launch.stages_for(
            is_single=tiles.num_tokens == 1, lot_bytes=2 * launch.num_keys * block_d * key_blocks.element_size()
        ),
    )
    if num_splits > 1:
        _join[(num_tokens, num_heads)](
            parts, sums, out, num_tokens, NUM_HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_D=block_d, NUM_SPLITS=num_splits
        )
    return out


# Compiled once for all that these may be: what depends on them is no address of many bytes at once. Else the first
# batch whose numbers lie at odd places would wait for a compiler.
@triton.jit(
    do_not_specialize=["window", "num_tokens", "num_splits", "table_stride"],
    do_not_specialize_on_alignment=["block_tables", "query_starts", "seq_lens", "tile_requests", "tile_starts"],
)
def _attend(  # noqa: PLR0915 - a kernel is one function
    query: tl.tensor,
    key_blocks: tl.tensor,
    value_blocks: tl.tensor,
    block_tables: tl.tensor,
    query_starts: tl.tensor,
    seq_lens: tl.tensor,
    tile_requests: tl.tensor,
    tile_starts: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    num_tokens: tl.tensor,
    num_splits: tl.tensor,
    table_stride: tl.tensor,
    query_stride: tl.tensor,
    block_stride: tl.tensor,
    slot_stride: tl.tensor,
    head_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One tile of rows against one part of its request's keys.

    row of the tile         0      1      2      3      4      5   ...
    token, head of group   t0 h0  t0 h1  t1 h0  t1 h1  t2 h0  t2 h1         2 heads share a key-value head
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    request = tl.load(tile_requests + tile)
    first_row = tl.load(tile_starts + tile)
    rows_start = tl.load(query_starts + request)
    num_rows = tl.load(query_starts + request + 1) - rows_start
    seq_len = tl.load(seq_lens + request)

    lanes = tl.arange(0, ROWS)
    tokens = first_row + lanes // GROUPS
    is_row = (lanes // GROUPS < TILE_TOKENS) & (tokens < num_rows)
    places = seq_len - num_rows + tokens
    heads = kv_head * GROUPS + lanes % GROUPS
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < HEAD_DIM
    at = (rows_start + tokens).to(tl.int64) * query_stride + heads * HEAD_DIM
    q = tl.load(query + at[:, None] + dims[None, :], mask=is_row[:, None] & is_dim[None, :], other=0.0)

    # Keys that any row of the tile sees, cut into equal parts of whole groups of keys.
    last = tl.minimum(seq_len, seq_len - num_rows + first_row + TILE_TOKENS)
    first = tl.where(window > 0, tl.maximum(seq_len - num_rows + first_row - window + 1, 0), 0)
    first = first // KEYS * KEYS
    part = tl.cdiv(tl.cdiv(last - first, KEYS), num_splits) * KEYS
    start = first + split * part
    stop = tl.minimum(start + part, last)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for key_start in range(start, stop, KEYS):
        keys = key_start + tl.arange(0, KEYS)
        is_key = keys < stop
        block = tl.load(block_tables + request.to(tl.int64) * table_stride + keys // BLOCK_SIZE, mask=is_key, other=0)
        slot = block.to(tl.int64) * block_stride + (keys % BLOCK_SIZE) * slot_stride + kv_head * head_stride
        # What was never written is not read: a product of 0 and a NaN would be one.
        is_read = is_key[:, None] & is_dim[None, :]
        k = tl.load(key_blocks + slot[:, None] + dims[None, :], mask=is_read, other=0.0).to(q.dtype)
        v = tl.load(value_blocks + slot[:, None] + dims[None, :], mask=is_read, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        is_seen = is_key[None, :] & (keys[None, :] <= places[:, None])
        is_seen = is_seen & ((window == 0) | (keys[None, :] > places[:, None] - window))
        scores = tl.where(is_seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # A row that has seen no key yet has no highest score, and infinity less infinity is no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(highest - base)
        total = total * decay + tl.sum(weights, 1)
        mixed = mixed * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        highest = higher

    is_out = is_row[:, None] & is_dim[None, :]
    if IS_SPLIT:
        row = (split * num_tokens + rows_start + tokens).to(tl.int64) * NUM_HEADS + heads
        tl.store(parts + row[:, None] * HEAD_DIM + dims[None, :], mixed, mask=is_out)
        tl.store(sums + row * 2, highest, mask=is_row)
        tl.store(sums + row * 2 + 1, total, mask=is_row)
    else:
        mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        row = (rows_start + tokens).to(tl.int64) * NUM_HEADS + heads
        tl.store(parts + row[:, None] * HEAD_DIM + dims[None, :], mixed.to(parts.dtype.element_ty), mask=is_out)


@triton.jit(do_not_specialize=["num_tokens"])
def _join(
    parts: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
) -> None:
    """Join the parts of one row and head: weigh each by what its highest score is below the highest of all."""
    row = tl.program_id(0).to(tl.int64) * NUM_HEADS + tl.program_id(1)
    splits = tl.arange(0, NUM_SPLITS)
    dims = tl.arange(0, BLOCK_D)
    at = splits.to(tl.int64) * num_tokens * NUM_HEADS + row
    highest = tl.load(sums + at * 2)
    total = tl.load(sums + at * 2 + 1)
    top = tl.max(highest, 0)
    weights = tl.exp2(highest - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weights * total, 0)
    mixed = tl.load(parts + at[:, None] * HEAD_DIM + dims[None, :], mask=dims[None, :] < HEAD_DIM, other=0.0)
    mixed = tl.sum(weights[:, None] * mixed, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * HEAD_DIM + dims, mixed.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
