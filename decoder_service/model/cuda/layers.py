"""The decoder's layers on CUDA: five kernels and four products each, over rows whose places are all on the device.

Knows weights, kernels and the KV cache. Does not know requests or graphs; nothing here waits for the device, and
nothing depends on values that only the device has, so a pass can be recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from common.model.config import MistralConfig
from common.model.fused_rows import add_rms_norm, silu_and_multiply
from common.model.rope import inverse_frequencies
from decoder_service.adapters.changes import NO_CHANGES, Changes
from decoder_service.adapters.joined import DOWN, GATE_UP, OUTPUT, QKV
from decoder_service.model.cuda.attention import Attend
from decoder_service.model.cuda.fused import rotate_and_store
from decoder_service.model.cuda.layer_weights import LayerWeights
from decoder_service.model.kv_cache import KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the rows of one pass stand, and what they see."""

    positions: Tensor
    """[num_tokens], counted from 0 in each request"""
    slot_mapping: Tensor
    """[num_tokens]; a negative slot stores nothing"""
    attend: Attend
    """What they see, and who computes it"""
    changes: Changes = NO_CHANGES
    """What adapters add, by the names of joined products; nothing in a pass that is recorded"""


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
            qkv = places.changes.add(layer, QKV, normed, weights.qkv(normed))
            delta = self._attend(layer, qkv, cos, sin, places)
            normed = add_rms_norm(embeds, delta, weights.post_norm, eps=weights.eps)
            gated = silu_and_multiply(places.changes.add(layer, GATE_UP, normed, weights.gate_up(normed)))
            delta = places.changes.add(layer, DOWN, gated, weights.down(gated))
        return embeds if delta is None else embeds + delta

    def _attend(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, places: Places) -> Tensor:
        config, key_blocks, value_blocks = self._config, *self._blocks(layer)
        query = rotate_and_store(
            qkv, cos, sin, places.slot_mapping, key_blocks, value_blocks, num_heads=config.num_attention_heads
        )
        mixed = places.attend(query, key_blocks, value_blocks).flatten(1)
        return places.changes.add(layer, OUTPUT, mixed, self._weights[layer].o(mixed))

    def _blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._kv_cache.key_blocks[layer], self._kv_cache.value_blocks[layer]
