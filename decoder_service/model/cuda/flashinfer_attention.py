"""`PagedAttention` by FlashInfer (Ye et al., arXiv 2501.01005), a package that need not be there.

Knows what its wrappers are planned with: the blocks of each request one after another, and how full its last one is.
Does not know the package: who makes this brings a function that makes wrappers. A wrapper's plan is its own memory, so
that each size of recorded pass has a wrapper, and all other passes share one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from common.model.devices import Mark, wait_for_nothing
from decoder_service.model.cuda.attention import Attend, AttentionShape, RecordedAttention, Spans


class Wrapper(Protocol):
    """FlashInfer's `BatchPrefillWithPagedKVCacheWrapper`, as far as it is used here."""

    def plan(
        self,
        query_starts: Tensor,
        block_starts: Tensor,
        blocks: Tensor,
        last_lengths: Tensor,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        block_size: int,
        /,
        *,
        causal: bool,
        sm_scale: float,
        window_left: int,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        """Note what the next runs compute."""
        ...

    def run(self, query: Tensor, keys_and_values: tuple[Tensor, Tensor], /) -> Tensor:
        """Attention as planned."""
        ...


@dataclass(frozen=True, slots=True)
class PlanMemory:
    """Memory on the device in which a recorded pass finds its plan; all int32."""

    query_starts: Tensor
    """[num_requests + 1]"""
    block_starts: Tensor
    """[num_requests + 1]"""
    blocks: Tensor
    """[num_requests * max_blocks]"""
    last_lengths: Tensor
    """[num_requests]"""


MakeWrapper = Callable[[PlanMemory | None], Wrapper]
"""A wrapper for recorded passes that find their plans in this memory, or for all other passes."""


class FlashInferAttention:
    """Attention that is planned on the host, anew for each pass."""

    name = "flashinfer"

    def __init__(self, shape: AttentionShape, make_wrapper: MakeWrapper, mark: Mark) -> None:
        """Compute with the wrappers that are made; `mark` tells when the device has read what a plan left for it."""
        self._shape = shape
        self._make_wrapper = make_wrapper
        self._mark = mark
        self._unrecorded = _Planned(shape, make_wrapper(None), mark)

    def plan(self, spans: Spans) -> Attend:
        """See `PagedAttention`."""
        self._unrecorded.plan(spans, spans.most_tokens)
        return self._unrecorded.attend

    def plan_recorded(self, spans: Spans) -> RecordedAttention:
        """See `PagedAttention`."""
        planned = _Planned(self._shape, self._make_wrapper(_plan_memory(spans.block_tables)), self._mark)
        planned.plan(spans, spans.most_tokens)
        return RecordedAttention(planned.attend, partial(planned.plan, spans))


class _Planned:
    """A wrapper and its plan."""

    def __init__(self, shape: AttentionShape, wrapper: Wrapper, mark: Mark) -> None:
        self._shape = shape
        self._wrapper = wrapper
        self._mark = mark
        self._wait: Callable[[], None] = wait_for_nothing

    def plan(self, spans: Spans, seq_lens: Sequence[int]) -> None:
        """Plan for spans of these lengths."""
        shape = self._shape
        # A row that fills up sees one key, of whatever block: nobody reads what comes out of it.
        lengths = [max(length, 1) for length in seq_lens]
        counts = [-(-length // shape.block_size) for length in lengths]
        last_lengths = [length - (count - 1) * shape.block_size for length, count in zip(lengths, counts, strict=True)]
        self._wait()  # Else the plan before might be read as this one.
        self._wrapper.plan(
            _int32([*accumulate(spans.query_lengths, initial=0)]),
            _int32([*accumulate(counts, initial=0)]),
            _blocks(spans.block_tables, counts),
            _int32(last_lengths),
            shape.num_heads,
            shape.num_key_value_heads,
            shape.head_dim,
            shape.block_size,
            causal=True,
            sm_scale=shape.scale,
            window_left=-1 if shape.sliding_window is None else shape.sliding_window - 1,
            q_data_type=shape.dtype,
            kv_data_type=shape.kv_dtype,
        )
        self._wait = self._mark()

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attend`."""
        return self._wrapper.run(query, (keys, values))


def _blocks(block_tables: Tensor, counts: Sequence[int]) -> Tensor:
    """The first `counts` blocks of each row, one row after another, on the tables' device."""
    width, total = block_tables.shape[1], sum(counts)
    starts = torch.tensor([*accumulate(counts[:-1], initial=0)])
    rows = torch.arange(len(counts)) * width - starts
    places = torch.repeat_interleave(rows, torch.tensor(counts), output_size=total) + torch.arange(total)
    if block_tables.is_cuda:
        places = places.pin_memory()  # Else the device would be waited for.
    return block_tables.flatten()[places.to(block_tables.device, non_blocking=True)]


def _plan_memory(block_tables: Tensor) -> PlanMemory:
    num_requests = len(block_tables)

    def zeros(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32, device=block_tables.device)

    return PlanMemory(
        zeros(num_requests + 1), zeros(num_requests + 1), zeros(block_tables.numel()), zeros(num_requests)
    )


def _int32(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)
