"""Attention as the kernels compute it, called from outside."""

from ctypes import c_int64

import torch

from common.native.library import Library

LENGTHS = [1, 7, 64, 65, 200]


def random_rows(heads: int, kv_heads: int, head_dim: int) -> list[torch.Tensor]:
    """Query, key and value of sequences of `LENGTHS`."""
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(sum(LENGTHS), heads, head_dim, generator=generator)
    return [query, *torch.randn(2, sum(LENGTHS), kv_heads, head_dim, generator=generator)]


def native_attention(
    library: Library,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    lengths: list[int],
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """`common.model.attention.packed_attention` by what encoder and decoder call inside of the library."""
    out = torch.empty_like(query)
    library.c.diptych_packed_attention(
        library.pool,
        *(x.data_ptr() for x in (query, key, value)),
        query.shape[1],
        *key.shape[1:],
        len(lengths),
        (c_int64 * len(lengths))(*lengths),
        causal,
        library.rounds,
        scale,
        out.data_ptr(),
    )
    return out
