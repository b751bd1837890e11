"""Paged attention whose bits depend on a row's own position and past alone.

Knows tensors, not requests. Slower than `paged_attention`, which is free to batch what happens to run together.
"""

import torch
from torch import Tensor
from torch.nn import functional

_TILE = 16
"""Query rows of every product; a row's place among them is its position modulo this."""


def aligned_attention(
    query: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    *,
    block_table: Tensor,
    seq_len: int,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention of one request's newest rows over its blocks.

    Takes query [num_rows, num_heads, head_dim], which are the rows up to `seq_len`; key_blocks and value_blocks
    [num_blocks, block_size, num_key_value_heads, head_dim], in which the new rows already stand; block_table
    [max_blocks]. Returns the query's shape. Positions are cut into tiles from 0 on; every tile that has a new row
    is computed whole, over keys up to its own end, so that all shapes follow from the position.
    """
    out = torch.empty_like(query)
    start = seq_len - len(query)
    for tile in range(start // _TILE, -(-seq_len // _TILE)):
        first, last = max(start, tile * _TILE), min(seq_len, (tile + 1) * _TILE)
        inside = slice(first - tile * _TILE, last - tile * _TILE)
        rows = query.new_zeros((_TILE, *query.shape[1:]))
        rows[inside] = query[first - start : last - start]
        end = (tile + 1) * _TILE
        keys, values = (_up_to(blocks, block_table, end).to(query.dtype) for blocks in (key_blocks, value_blocks))
        q, k, v = (x.transpose(0, 1)[None] for x in (rows, keys, values))
        visible = _visible(tile, sliding_window, query.device)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out[first - start : last - start] = mixed[0].transpose(0, 1)[inside]
    return out


def _up_to(blocks: Tensor, block_table: Tensor, length: int) -> Tensor:
    """Rows [length, num_key_value_heads, head_dim] of a request; what it has no block for repeats its first."""
    num_blocks = -(-length // blocks.shape[1])
    wanted = block_table[:1].repeat(num_blocks)
    held = block_table[:num_blocks]
    wanted[: len(held)] = held
    return blocks[wanted].flatten(0, 1)[:length]


def _visible(tile: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the keys up to the tile's end each of its rows sees, [_TILE, num_keys]."""
    rows = torch.arange(tile * _TILE, (tile + 1) * _TILE, device=device)[:, None]
    columns = torch.arange((tile + 1) * _TILE, device=device)[None, :]
    visible = columns <= rows
    if window is not None:
        visible &= columns > rows - window
    return visible
