"""The decoder's layers on CUDA: five kernels and four products each, over rows whose places are all on the device.

Knows weights, kernels and the KV cache. Does not know requests or graphs; nothing here waits for the device, and
nothing depends on values that only the device has, so a pass can be recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.config import MistralConfig
from common.model.rope import inverse_frequencies
from decoder_service.model.cuda.fused import add_rms_norm, rotate_and_store, silu_and_multiply
from decoder_service.model.cuda.layer_weights import LayerWeights
from decoder_service.model.cuda.paged_attention import triton_paged_attention
from decoder_service.model.cuda.tiles import AttentionTiles
from decoder_service.model.kv_cache import KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the rows of one pass stand and what they see."""

    positions: Tensor
    """[num_tokens], counted from 0 in each request"""
    slot_mapping: Tensor
    """[num_tokens]; a negative slot stores nothing"""
    block_tables: Tensor
    """[num_requests, max_blocks]"""
    query_starts: Tensor
    """int32 [num_requests + 1], where each request's rows begin"""
    seq_lens: Tensor
    """int32 [num_requests], tokens with the new ones; 0 for a row that fills up"""
    tiles: AttentionTiles
    num_splits: int
    """Parts that the keys of a tile are split into"""


class CudaLayers:
    """All layers with their part of the KV cache."""

    def __init__(self, config: MistralConfig, weights: Sequence[LayerWeights], kv_cache: KVCache) -> None:
        self._config = config
        self._weights = weights
        self._kv_cache = kv_cache
        self._frequencies = inverse_frequencies(config.head_dim, config.rope_theta, weights[0].input_norm.device)

    def __call__(self, embeds: Tensor, places: Places) -> Tensor:
        """Hidden rows [num_tokens, hidden_size] before the final norm; embeds, of the same shape, are overwritten."""
        angles = places.positions.float()[:, None] * self._frequencies[None, :]
        cos, sin = angles.cos(), angles.sin()
        delta: Tensor | None = None
        for layer, weights in enumerate(self._weights):
            normed = add_rms_norm(embeds, delta, weights.input_norm, eps=weights.eps)
            delta = self._attend(layer, weights.qkv(normed), cos, sin, places)
            normed = add_rms_norm(embeds, delta, weights.post_norm, eps=weights.eps)
            gated = silu_and_multiply(weights.gate_up(normed))
            delta = weights.down(gated)
        return embeds if delta is None else embeds + delta

    def _attend(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, places: Places) -> Tensor:
        config, key_blocks, value_blocks = self._config, *self._blocks(layer)
        query = rotate_and_store(
            qkv, cos, sin, places.slot_mapping, key_blocks, value_blocks, num_heads=config.num_attention_heads
        )
        mixed = triton_paged_attention(
            query,
            key_blocks,
            value_blocks,
            block_tables=places.block_tables,
            query_starts=places.query_starts,
            seq_lens=places.seq_lens,
            tiles=places.tiles,
            num_splits=places.num_splits,
            scale=config.attention_multiplier,
            sliding_window=config.sliding_window,
        )
        return self._weights[layer].o(mixed.flatten(1))

    def _blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._kv_cache.key_blocks[layer], self._kv_cache.value_blocks[layer]


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a device; 1 for a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
