"""`PagedAttention` by our own kernel.

Knows how many rows, keys and programs there are. Does not know what the kernel computes.
"""

from functools import partial

import torch
from torch import Tensor

from decoder_service.model.cuda.attention import Attend, AttentionShape, RecordedAttention, Spans, prepare_nothing
from decoder_service.model.cuda.paged_attention import DEFAULT_LAUNCH, AttentionLaunch, triton_paged_attention
from decoder_service.model.cuda.tiles import AttentionTiles, num_splits_for


class TritonAttention:
    """The one that all devices with Triton have, and that needs nothing else."""

    name = "triton"

    def __init__(self, shape: AttentionShape, device: torch.device, launch: AttentionLaunch = DEFAULT_LAUNCH) -> None:
        self._shape = shape
        self._launch = launch
        self._num_programs = launch.programs * num_processors(device)

    def plan(self, spans: Spans) -> Attend:
        """See `PagedAttention`."""
        shape = self._shape
        groups = shape.num_heads // shape.num_key_value_heads
        tiles = AttentionTiles.for_lengths(
            spans.query_lengths, num_groups=groups, device=spans.seq_lens.device, dtype=shape.dtype
        )
        splits = num_splits_for(
            num_tiles=len(tiles.requests),
            num_key_value_heads=shape.num_key_value_heads,
            num_programs=self._num_programs,
            max_seq_len=max(spans.most_tokens),
        )
        return partial(self._attend, spans, tiles, splits)

    def plan_recorded(self, spans: Spans) -> RecordedAttention:
        """See `PagedAttention`."""
        return RecordedAttention(self.plan(spans), prepare_nothing)

    def _attend(
        self, spans: Spans, tiles: AttentionTiles, num_splits: int, query: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        return triton_paged_attention(
            query,
            keys,
            values,
            block_tables=spans.block_tables,
            query_starts=spans.query_starts,
            seq_lens=spans.seq_lens,
            tiles=tiles,
            num_splits=num_splits,
            scale=self._shape.scale,
            sliding_window=self._shape.sliding_window,
            launch=self._launch,
        )


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a device; 1 for a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
