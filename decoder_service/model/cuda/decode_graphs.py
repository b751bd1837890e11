"""Steps that give every request one token, recorded once for each of a few batch sizes.

Knows the tensors that a recorded pass reads and writes, and how a batch is filled up to the next recorded size. Does
not know how anything is computed or recorded. A row that fills up has no keys to see and stores nothing.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.model.graph_recorder import GraphRecorder, Run, record_sizes
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.cuda.layers import Places
from decoder_service.model.cuda.tiles import AttentionTiles

Layers = Callable[[Tensor, Places], Tensor]
"""See `CudaLayers`."""

ChooseSplits = Callable[[int], int]
"""Parts to split the keys into for a batch of so many requests."""


def batch_sizes(most: int) -> tuple[int, ...]:
    """Sizes to record for batches of up to `most` requests: close together where a filled-up row costs much."""
    sizes = [size for size in (1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, most, 32)) if size < most]
    return (*sizes, most)


class DecodeGraphs:
    """Recorded passes over the layers for batches of single tokens."""

    def __init__(
        self,
        layers: Layers,
        recorder: GraphRecorder,
        *,
        sizes: Sequence[int],
        max_blocks: int,
        hidden_size: int,
        choose_splits: ChooseSplits,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Record a pass for each of `sizes` that there is memory for, over block tables of up to `max_blocks`."""
        most = max(sizes)
        self._embeds = torch.zeros(most, hidden_size, device=device, dtype=dtype)
        self._positions = torch.zeros(most, device=device, dtype=torch.long)
        self._slots = torch.full((most,), -1, device=device, dtype=torch.long)
        self._tables = torch.zeros(most, max_blocks, device=device, dtype=torch.long)
        self._seq_lens = torch.zeros(most, device=device, dtype=torch.int32)
        self._starts = torch.arange(most + 1, device=device, dtype=torch.int32)
        self._layers = layers
        self._choose_splits = choose_splits
        self._recorded = record_sizes(recorder, sizes, self._make_work)

    def fits(self, forward: ForwardBatch) -> bool:
        """Whether every request has one new token, and there are not too many."""
        num_requests = len(forward.query_lengths)
        return num_requests == len(forward.token_ids) and num_requests <= max(self._recorded, default=0)

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        """Hidden rows [num_tokens, hidden_size] of a batch that `fits`; they are overwritten by the next call."""
        num_requests = len(embeds)
        size = min(size for size in self._recorded if size >= num_requests)
        self._embeds[:num_requests].copy_(embeds)
        self._positions[:num_requests].copy_(forward.positions)
        self._slots[:num_requests].copy_(forward.slot_mapping)
        self._slots[num_requests:size].fill_(-1)
        self._tables[:num_requests, : forward.block_tables.shape[1]].copy_(forward.block_tables)
        self._seq_lens[:num_requests].copy_(forward.seq_lens_there)
        self._seq_lens[num_requests:size].fill_(0)
        recorded = self._recorded[size]
        recorded.run()
        return recorded.out[:num_requests]

    def _make_work(self, size: int) -> tuple[Run, Tensor]:
        places = Places(
            positions=self._positions[:size],
            slot_mapping=self._slots[:size],
            block_tables=self._tables[:size],
            query_starts=self._starts[: size + 1],
            seq_lens=self._seq_lens[:size],
            tiles=AttentionTiles.for_lengths([1] * size, num_groups=1, device=self._starts.device),
            num_splits=self._choose_splits(size),
        )
        hidden = torch.zeros_like(self._embeds[:size])

        def work() -> None:
            hidden.copy_(self._layers(self._embeds[:size], places))

        return work, hidden
