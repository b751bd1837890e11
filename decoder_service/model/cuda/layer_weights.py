"""The decoder's weights as the CUDA kernels want them: queries, keys and values as one product, gate and up as one.

Knows the modules of `decoder_service.model.mistral`. Does not know how they are computed with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decoder_service.model.cuda.products import Product, join
from decoder_service.model.mistral import DecoderLayer, MistralForCausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Weights of one layer, the products with what multiplies."""

    input_norm: Tensor
    """[hidden_size]"""
    qkv: Product
    """hidden_size to (num_heads + 2 * num_key_value_heads) * head_dim"""
    o: Product
    """num_heads * head_dim to hidden_size"""
    post_norm: Tensor
    """[hidden_size]"""
    gate_up: Product
    """hidden_size to 2 * intermediate_size, the gate first"""
    down: Product
    """intermediate_size to hidden_size"""
    eps: float

    @staticmethod
    def of(layer: DecoderLayer) -> "LayerWeights":
        """Join a layer's weights. Its own become views of the joined ones, so nothing is there twice."""
        attention, feed_forward = layer.self_attn, layer.mlp
        return LayerWeights(
            input_norm=layer.input_layernorm.weight.detach(),
            qkv=join(attention.q_proj, attention.k_proj, attention.v_proj),
            o=join(attention.o_proj),
            post_norm=layer.post_attention_layernorm.weight.detach(),
            gate_up=join(feed_forward.gate_proj, feed_forward.up_proj),
            down=join(feed_forward.down_proj),
            eps=layer.input_layernorm.eps,
        )


def join_layers(decoder: MistralForCausalLM) -> list[LayerWeights]:
    """Join the weights of all layers, and hand back after each what torch would keep of its parts.

    A joined weight is longer than any part and fits into no room that parts leave, so that else the device would hold
    all of these twice, out of other processes' reach.
    """
    joined = []
    for layer in decoder.decoder_layers:
        joined.append(LayerWeights.of(layer))
        torch.cuda.empty_cache()
    return joined
