"""`PagedAttention` by torch's own, which reads block tables where FlashAttention 3 computes it.

Knows torch's function and what it calls things. Does not know whether it can be had: see `attention_choice`. Source of
the kernel: Shah et al., "FlashAttention-3" (arXiv 2407.08608).
"""

from functools import partial
from typing import Protocol

from torch import Tensor

from decoder_service.model.cuda.attention import Attend, AttentionShape, RecordedAttention, Spans, prepare_nothing


class VarlenAttention(Protocol):
    """torch's `varlen_attn`, as far as it is used here."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        scale: float | None,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: Tensor | None,
        block_table: Tensor | None,
    ) -> object:
        """The attention output, a tensor, as nothing else is asked for."""
        ...


class TorchAttention:
    """Attention of all spans in one call, which needs no plan."""

    name = "torch"

    def __init__(self, shape: AttentionShape, varlen_attention: VarlenAttention) -> None:
        self._scale = shape.scale
        # torch counts the keys on the left of a row's own, and takes -1 for all.
        self._window = (-1 if shape.sliding_window is None else shape.sliding_window - 1, 0)
        self._varlen_attention = varlen_attention

    def plan(self, spans: Spans) -> Attend:
        """See `PagedAttention`."""
        return partial(self._attend, spans, max(spans.query_lengths), max(spans.most_tokens))

    def plan_recorded(self, spans: Spans) -> RecordedAttention:
        """See `PagedAttention`."""
        return RecordedAttention(self.plan(spans), prepare_nothing)

    def _attend(
        self, spans: Spans, longest_query: int, longest: int, query: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        out = self._varlen_attention(
            query,
            keys,
            values,
            spans.query_starts,
            None,
            longest_query,
            longest,
            scale=self._scale,
            window_size=self._window,
            enable_gqa=True,
            seqused_k=spans.seq_lens,
            block_table=spans.block_tables,
        )
        if not isinstance(out, Tensor):
            raise TypeError("attention alone was asked for")
        return out
