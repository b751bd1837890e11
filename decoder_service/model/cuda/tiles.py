"""How the work of paged attention is cut up: rows into tiles, keys into parts.

Knows lengths and the device's size. Does not know the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TILE_ROWS, _WIDE_TILE_ROWS = 64, 16
"""Rows of a tile of a prompt, heads times tokens; fewer in fp32, whose products are not the tensor cores' and so are
written out for every row: of 64 the compiler makes tens of seconds of work and code that does not fit the registers."""
_MAX_SPLITS = 32
_MIN_KEYS = 256
"""Keys of a part, below which joining the parts costs more than it brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTiles:
    """How query rows are cut into tiles: each holds rows of one request, and their heads of one key-value head."""

    requests: Tensor
    """int32 [num_tiles], the request of each tile"""
    starts: Tensor
    """int32 [num_tiles], its first row within the request's new rows"""
    num_tokens: int
    """Rows of a tile"""

    @staticmethod
    def for_lengths(
        query_lengths: Sequence[int], *, num_groups: int, device: torch.device, dtype: torch.dtype
    ) -> "AttentionTiles":
        """Cut requests with so many new rows each, of `num_groups` heads per key-value head and of this type."""
        if max(query_lengths) == 1:  # As in nearly every step, which brings the device nothing for it.
            requests = torch.arange(len(query_lengths), dtype=torch.int32, device=device)
            return AttentionTiles(requests=requests, starts=torch.zeros_like(requests), num_tokens=1)
        rows = _WIDE_TILE_ROWS if dtype == torch.float32 else _TILE_ROWS
        num_tokens = max(1, rows // num_groups)
        tiles = [(index, start) for index, length in enumerate(query_lengths) for start in range(0, length, num_tokens)]
        both = torch.tensor(tiles, dtype=torch.int32).T.contiguous().to(device, non_blocking=True)
        return AttentionTiles(requests=both[0], starts=both[1], num_tokens=num_tokens)


def num_splits_for(*, num_tiles: int, num_key_value_heads: int, num_programs: int, max_seq_len: int) -> int:
    """Parts to split the keys into, so that there are up to `num_programs` where tiles alone are fewer.

    A power of two, so that few kernels are compiled.
    """
    wanted = num_programs // max(1, num_tiles * num_key_value_heads)
    most = min(_MAX_SPLITS, -(-max_seq_len // _MIN_KEYS), wanted)
    return 1 << max(0, most.bit_length() - 1)
