"""The paged KV cache: keys and values of every token, in blocks.

In the model's type, or in 8-bit floats (e4m3) without a scale, as keys and values of these models lie well within their
range. Knows tensors and their sizes. Does not know which request owns which block (see `block_manager`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.model.config import MistralConfig


class KVCache:
    """One pair of block tensors a layer, each [num_blocks, block_size, num_key_value_heads, head_dim].

    Zeroed at the start: masked attention multiplies unwritten values by 0, and 0 * NaN is NaN.
    """

    def __init__(
        self, config: MistralConfig, *, num_blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.block_size = block_size
        self.dtype = dtype
        shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.key_blocks = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.value_blocks = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]

    def write(self, layer: int, slot_mapping: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key and value [num_tokens, num_key_value_heads, head_dim] at slots [num_tokens].

        A slot is `block_id * block_size + offset`.
        """
        for blocks, rows in ((self.key_blocks[layer], key), (self.value_blocks[layer], value)):
            stored = saturated(rows, self.dtype)
            _movable(blocks).flatten(0, 1).index_copy_(0, slot_mapping, _movable(stored))

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy blocks; every source is read before any target is written."""
        read, written = self._there(sources), self._there(targets)
        for blocks in (*self.key_blocks, *self.value_blocks):
            moved = _movable(blocks)
            moved.index_copy_(0, written, moved.index_select(0, read))

    def clear(self, block_table: Sequence[int]) -> None:
        """Zero blocks, so that what they held harms nobody who gets them next."""
        cleared = self._there(block_table)
        for blocks in (*self.key_blocks, *self.value_blocks):
            _movable(blocks).index_fill_(0, cleared, 0)

    def _there(self, block_ids: Sequence[int]) -> Tensor:
        """Numbers of blocks on the cache's device, brought there once: each time is waited for."""
        return torch.tensor(list(block_ids), dtype=torch.long, device=self.key_blocks[0].device)


def saturated(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in a type, what is too large for it, infinities too, as its largest number; a NaN stays one."""
    if rows.dtype == dtype:
        return rows
    limit = torch.finfo(dtype).max
    return rows.clamp(-limit, limit).to(dtype)


def _movable(blocks: Tensor) -> Tensor:
    """The same memory as something that every device copies: not all copy 8-bit floats by index."""
    return blocks.view(torch.uint8) if blocks.dtype.itemsize == 1 else blocks
