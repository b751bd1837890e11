"""The decoder's weights as the CUDA kernels want them: queries, keys and values as one product, gate and up as one.

Knows the modules of `decoder_service.model.mistral`. Does not know how they are computed with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decoder_service.model.mistral import DecoderLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Weights of one layer."""

    input_norm: Tensor
    """[hidden_size]"""
    qkv: Tensor
    """[(num_heads + 2 * num_key_value_heads) * head_dim, hidden_size]"""
    o: Tensor
    """[hidden_size, num_heads * head_dim]"""
    post_norm: Tensor
    """[hidden_size]"""
    gate_up: Tensor
    """[2 * intermediate_size, hidden_size], the gate first"""
    down: Tensor
    """[hidden_size, intermediate_size]"""
    eps: float

    @staticmethod
    def of(layer: DecoderLayer) -> "LayerWeights":
        """Join a layer's weights. Its own become views of the joined ones, so nothing is there twice."""
        attention, feed_forward = layer.self_attn, layer.mlp
        return LayerWeights(
            input_norm=layer.input_layernorm.weight.detach(),
            qkv=_join(attention.q_proj, attention.k_proj, attention.v_proj),
            o=attention.o_proj.weight.detach(),
            post_norm=layer.post_attention_layernorm.weight.detach(),
            gate_up=_join(feed_forward.gate_proj, feed_forward.up_proj),
            down=feed_forward.down_proj.weight.detach(),
            eps=layer.input_layernorm.eps,
        )


def _join(*products: nn.Linear) -> Tensor:
    joined = torch.cat([product.weight.detach() for product in products])
    parts = joined.split([product.out_features for product in products])
    for product, part in zip(products, parts, strict=True):
        product.weight = nn.Parameter(part, requires_grad=False)
    return joined
