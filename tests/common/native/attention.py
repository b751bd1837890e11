"""Attention as the kernels compute it, called from outside."""

from ctypes import c_int64

import torch

from common.native.library import Library


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
