"""The decoder's layers for a pass of one row: six kernels each, as norms, gate and sums go with their products.

Knows weights, kernels and the KV cache. Does not know when a pass has one row, nor whether this is the faster way (see
`pass_choice`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from common.model.config import MistralConfig
from common.model.rope import inverse_frequencies
from decoder_service.model.cuda.fused import rotate_and_store
from decoder_service.model.cuda.layer_weights import LayerWeights
from decoder_service.model.cuda.layers import Places
from decoder_service.model.cuda.one_row import RowWeight, add_product, gated_product, normed_product
from decoder_service.model.cuda.products import Fp8Product, PlainProduct, Product
from decoder_service.model.kv_cache import KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer's weights as one row is multiplied with them; see `LayerWeights`."""

    input_norm: Tensor
    qkv: RowWeight
    o: RowWeight
    post_norm: Tensor
    gate_up: RowWeight
    down: RowWeight
    eps: float

    @staticmethod
    def of(weights: LayerWeights) -> "_Layer":
        """The same memory."""
        return _Layer(
            input_norm=weights.input_norm,
            qkv=_row_weight(weights.qkv),
            o=_row_weight(weights.o),
            post_norm=weights.post_norm,
            gate_up=_row_weight(weights.gate_up),
            down=_row_weight(weights.down),
            eps=weights.eps,
        )


class OneRowLayers:
    """All layers with their part of the KV cache."""

    def __init__(self, config: MistralConfig, weights: Sequence[LayerWeights], kv_cache: KVCache) -> None:
        """Take weights as they are. Raises TypeError for products of another kind."""
        self._num_heads = config.num_attention_heads
        self._layers = [_Layer.of(each) for each in weights]
        self._kv_cache = kv_cache
        self._frequencies = inverse_frequencies(config.head_dim, config.rope_theta, weights[0].input_norm.device)

    def __call__(self, embeds: Tensor, places: Places) -> Tensor:
        """The hidden row [1, hidden_size] before the final norm; it takes the place of the embedding."""
        angles = places.positions.float()[:, None] * self._frequencies[None, :]
        cos, sin = angles.cos(), angles.sin()
        blocks = zip(self._layers, self._kv_cache.key_blocks, self._kv_cache.value_blocks, strict=True)
        for layer, keys, values in blocks:
            qkv = normed_product(embeds, layer.input_norm, layer.qkv, eps=layer.eps)
            query = rotate_and_store(qkv, cos, sin, places.slot_mapping, keys, values, num_heads=self._num_heads)
            add_product(places.attend(query, keys, values).flatten(1), layer.o, embeds)
            gated = gated_product(embeds, layer.post_norm, layer.gate_up, eps=layer.eps)
            add_product(gated, layer.down, embeds)
        return embeds


def _row_weight(product: Product) -> RowWeight:
    if isinstance(product, Fp8Product):
        return RowWeight(weight=product.weight, scale=product.scale)
    if isinstance(product, PlainProduct):
        return RowWeight(weight=product.weight)
    raise TypeError(f"{product!r} has no weight of its own")
