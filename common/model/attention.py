"""Scaled dot-product attention over packed rows, in plain torch: one file, two uses.

`packed_attention` serves the encoder: sequences lie one after another and do not see each other.
`paged_attention` serves the decoder: new rows see the blocks of their own request, causally.
Neither builds a mask over the whole batch. Knows tensors, not requests or images.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

_QUERY_TILE = 256
"""Rows of a prefill chunk that share one mask, which so stays small however long the chunk is."""


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, *, lengths: Sequence[int], causal: bool, scale: float
) -> Tensor:
    """Attention inside each of several packed sequences.

    Takes query [num_tokens, num_heads, head_dim], key and value [num_tokens, num_key_value_heads, head_dim]
    and the sequences' lengths, which add up to num_tokens; returns the query's shape. Neighbours of equal
    length run as one batch; no mask is built, so the cost is the sum of the squares of the lengths.
    """
    outputs = []
    start = 0
    for length, group in groupby(lengths):
        count = len(list(group))
        rows = slice(start, start + count * length)
        q, k, v = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
        start = rows.stop
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def paged_attention(
    query: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    *,
    block_tables: Tensor,
    query_lengths: Sequence[int],
    seq_lens: Sequence[int],
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention of each request's newest rows over its blocks.

    Takes query [num_tokens, num_heads, head_dim], packed by request; key_blocks and value_blocks
    [num_blocks, block_size, num_key_value_heads, head_dim], in which the new rows already stand, in the query's type or
    a smaller one; block_tables [num_requests, max_blocks]; per request the number of new rows and the length with them.
    Returns the query's shape. Requests with one new row run as one batch, the others one by one.
    """
    out = torch.empty_like(query)
    starts = [0]
    for length in query_lengths:
        starts.append(starts[-1] + length)
    decodes = [index for index, length in enumerate(query_lengths) if length == 1]
    if decodes:
        rows = torch.tensor([starts[index] for index in decodes], device=query.device)
        longest = max(seq_lens[index] for index in decodes)
        keys, values = _gather(key_blocks, value_blocks, block_tables[decodes], longest, query.dtype)
        lens = torch.tensor([seq_lens[index] for index in decodes], device=query.device)
        out[rows] = _attend_single(query[rows], keys, values, lens, scale, sliding_window)
    for index, length in enumerate(query_lengths):
        if length > 1:
            rows_of = slice(starts[index], starts[index] + length)
            keys, values = _gather(
                key_blocks, value_blocks, block_tables[index : index + 1], seq_lens[index], query.dtype
            )
            out[rows_of] = _attend_chunk(query[rows_of], keys[0], values[0], scale, sliding_window)
    return out


def _gather(
    key_blocks: Tensor, value_blocks: Tensor, tables: Tensor, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values of the tables' requests up to `length`: two [num_requests, length, kv_heads, head_dim]."""
    num_blocks = -(-length // key_blocks.shape[1])
    wanted = tables[:, :num_blocks]
    keys, values = (blocks[wanted].flatten(1, 2)[:, :length].to(dtype) for blocks in (key_blocks, value_blocks))
    return keys, values


def _attend_single(
    query: Tensor, keys: Tensor, values: Tensor, seq_lens: Tensor, scale: float, window: int | None
) -> Tensor:
    """One new row for each of several requests of different lengths.

    The heads that share a key-value head stand as the rows of one product, so nothing is repeated.
    """
    grouped = query.unflatten(1, (keys.shape[2], -1))
    places = torch.arange(keys.shape[1], device=query.device)
    visible = places < seq_lens[:, None]
    if window is not None:
        visible &= places >= seq_lens[:, None] - window
    out = functional.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=visible[:, None, None, :], scale=scale
    )
    return out.flatten(1, 2)


def _attend_chunk(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """Many new rows of one request, which are the last ones of its keys, in tiles of rows."""
    num_new, num_keys = query.shape[0], keys.shape[0]
    q, k, v = (x.transpose(0, 1)[None] for x in (query, keys, values))
    tiles = []
    for first in range(0, num_new, _QUERY_TILE):
        last = min(first + _QUERY_TILE, num_new)
        end = num_keys - num_new + last
        rows = torch.arange(end - (last - first), end, device=query.device)[:, None]
        columns = torch.arange(end, device=query.device)[None, :]
        visible = columns <= rows
        if window is not None:
            visible &= columns > rows - window
        tiles.append(
            functional.scaled_dot_product_attention(
                q[:, :, first:last],
                k[:, :, :end],
                v[:, :, :end],
                attn_mask=visible,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat(tiles, dim=2)[0].transpose(0, 1)
