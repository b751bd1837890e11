"""Steps that give every request one token, recorded once for each of a few batch sizes.

Knows the tensors that a recorded pass reads and writes, and how a batch is filled up to the next recorded size. Does
not know how anything is computed or recorded. A row that fills up has no keys to see and stores nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from common.model.graph_recorder import GraphRecorder, Recorded, Run, record_sizes
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.cuda.attention import PagedAttention, RecordedAttention, Spans
from decoder_service.model.cuda.layers import Places
from decoder_service.model.cuda.pass_choice import Challenge, Clock, faster

Layers = Callable[[Tensor, Places], Tensor]
"""See `CudaLayers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRow:
    """Layers for steps of one token alone, which are taken where they are faster."""

    layers: Layers
    clock: Clock
    limit: float
    """How far their row may be from that of the others, over its length"""


def batch_sizes(most: int) -> tuple[int, ...]:
    """Sizes to record for batches of up to `most` requests: close together where a filled-up row costs much."""
    sizes = [size for size in (1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, most, 32)) if size < most]
    return (*sizes, most)


class DecodeGraphs:
    """Recorded passes over the layers for batches of single tokens."""

    def __init__(
        self,
        layers: Layers,
        attention: PagedAttention,
        recorder: GraphRecorder,
        *,
        sizes: Sequence[int],
        max_model_len: int,
        block_size: int,
        hidden_size: int,
        device: torch.device,
        dtype: torch.dtype,
        one_row: OneRow | None = None,
    ) -> None:
        """Record a pass for each of `sizes` that there is memory for, of requests of up to `max_model_len` tokens.

        For steps of one token `one_row` is measured too.
        """
        most, max_blocks = max(sizes), -(-max_model_len // block_size)
        self._embeds = torch.zeros(most, hidden_size, device=device, dtype=dtype)
        self._positions = torch.zeros(most, device=device, dtype=torch.long)
        self._slots = torch.full((most,), -1, device=device, dtype=torch.long)
        self._tables = torch.zeros(most, max_blocks, device=device, dtype=torch.int32)
        self._seq_lens = torch.zeros(most, device=device, dtype=torch.int32)
        self._starts = torch.arange(most + 1, device=device, dtype=torch.int32)
        self._layers = layers
        self._attention = attention
        self._max_model_len = max_model_len
        self._planned: dict[int, RecordedAttention] = {}
        self._recorded = record_sizes(recorder, sizes, self._make_work)
        self.one_row_figures: dict[str, float] = {}
        """Of two ways to compute a step of one token: milliseconds of both, and how far they are apart."""
        if one_row is not None and 1 in self._recorded:
            challenge = Challenge(
                record=partial(self._record_one_row, one_row.layers, recorder),
                fill=self._fill_one_row,
                clock=one_row.clock,
                limit=one_row.limit,
            )
            self._recorded[1], self.one_row_figures = faster(self._recorded[1], challenge)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What was recorded, rising."""
        return tuple(sorted(self._recorded))

    def fits(self, forward: ForwardBatch) -> bool:
        """Whether every request has one new token and no adapter, and there are not too many.

        Hidden rows that judge prompts are read later than the next pass overwrites them.
        """
        num_requests = len(forward.query_lengths)
        is_single = num_requests == len(forward.token_ids) and not forward.prompt_rows and not forward.adapters
        return is_single and num_requests <= max(self._recorded, default=0)

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
        self._planned[size].prepare((*forward.seq_lens, *[0] * (size - num_requests)))
        recorded = self._recorded[size]
        recorded.run()
        return recorded.out[:num_requests]

    def _record_one_row(self, layers: Layers, recorder: GraphRecorder) -> Recorded:
        work, out = self._work(layers, 1, self._planned[1])
        return Recorded(recorder.record(work), out)

    def _fill_one_row(self) -> None:
        """The first token of a request that owns the first block, which nobody may own yet."""
        row = self._embeds[:1]
        row.copy_(torch.arange(row.shape[1], device=row.device).sin())
        self._slots[:1].fill_(0)
        self._seq_lens[:1].fill_(1)
        self._planned[1].prepare((1,))

    def _make_work(self, size: int) -> tuple[Run, Tensor]:
        spans = Spans(
            block_tables=self._tables[:size],
            query_starts=self._starts[: size + 1],
            seq_lens=self._seq_lens[:size],
            query_lengths=[1] * size,
            most_tokens=[self._max_model_len] * size,
        )
        planned = self._planned[size] = self._attention.plan_recorded(spans)
        return self._work(self._layers, size, planned)

    def _work(self, layers: Layers, size: int, planned: RecordedAttention) -> tuple[Run, Tensor]:
        places = Places(positions=self._positions[:size], slot_mapping=self._slots[:size], attend=planned.attend)
        hidden = torch.zeros_like(self._embeds[:size])

        def work() -> None:
            hidden.copy_(layers(self._embeds[:size], places))

        return work, hidden
