"""What the layers on CUDA ask of paged attention: the interface, and what the rows of one pass see.

Knows shapes and lengths. Does not know who computes it: see `attention_choice`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.model.config import MistralConfig
from decoder_service.model.kv_cache import KVCache

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention of each request's newest rows over its blocks, in one layer.

Takes query [num_tokens, num_heads, head_dim], packed by request, key_blocks and value_blocks
[num_blocks, block_size, num_key_value_heads, head_dim], in which the new rows already stand; returns the query's shape.
Nothing in it waits for the device.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What is the same for all passes."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    block_size: int
    """Tokens of a block."""
    scale: float
    """Of scores, before they are weights."""
    sliding_window: int | None
    """Keys that a row sees, its own among them; None for all."""
    dtype: torch.dtype
    """Of queries."""
    kv_dtype: torch.dtype
    """Of keys and values."""

    @staticmethod
    def of(config: MistralConfig, kv_cache: KVCache, dtype: torch.dtype) -> "AttentionShape":
        """That of a model of this type over this cache."""
        return AttentionShape(
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            block_size=kv_cache.block_size,
            scale=config.attention_multiplier,
            sliding_window=config.sliding_window,
            dtype=dtype,
            kv_dtype=kv_cache.dtype,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """New rows of several requests, packed one request after another, and where their keys and values lie."""

    block_tables: Tensor
    """int32 [num_requests, max_blocks]"""
    query_starts: Tensor
    """int32 [num_requests + 1], where each request's rows begin"""
    seq_lens: Tensor
    """int32 [num_requests], tokens with the new ones; 0 for a row that fills up"""
    query_lengths: Sequence[int]
    """[num_requests], new rows, as the host knows them"""
    most_tokens: Sequence[int]
    """[num_requests], `seq_lens` as the host knows them; of a pass that is recorded what they will be at most"""


@dataclass(frozen=True, slots=True)
class RecordedAttention:
    """Attention of a pass that is recorded once and run again on what is in the spans' tensors then."""

    attend: Attend
    prepare: Callable[[Sequence[int]], None]
    """To be called before each run with the requests' lengths, 0 for a row that fills up."""


class PagedAttention(Protocol):
    """Plans attention for a pass, whose layers all call what is returned."""

    name: str
    """What it is, for logs."""

    def plan(self, spans: Spans) -> Attend:
        """Attention over these spans, once."""
        ...

    def plan_recorded(self, spans: Spans) -> RecordedAttention:
        """Attention over whatever the tensors of these spans hold; each request has one new row."""
        ...


def prepare_nothing(_: Sequence[int]) -> None:
    """All that a run needs is in the spans' tensors."""
