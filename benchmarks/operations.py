"""Bytes that a model's passes read and operations that they do: what limits are made of.

Knows shapes. Does not know machines. A product of two numbers and its sum are two operations.
"""

from collections.abc import Sequence

import torch

from common.model.config import MistralConfig, PixtralVisionConfig


def layer_weights(config: MistralConfig) -> int:
    """Weights of all layers' products."""
    attention = config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return config.num_hidden_layers * config.hidden_size * (attention + 3 * config.feed_forward_length)


def head_weights(config: MistralConfig) -> int:
    """Weights of the product that gives logits."""
    return config.hidden_size * config.vocab_size


def weight_bytes(config: MistralConfig, dtype: torch.dtype, *, layers: torch.dtype | None = None) -> int:
    """Bytes of weights that a decode step reads: all but the embedding table, of which it reads a few rows.

    The layers' weights may be of another type than the head's.
    """
    return layer_weights(config) * (layers or dtype).itemsize + head_weights(config) * dtype.itemsize


def key_value_bytes(config: MistralConfig, num_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of so many tokens."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * num_tokens * dtype.itemsize


def prompt_flops(config: MistralConfig, length: int) -> float:
    """Operations of the layers over a prompt: products, and attention to what is before each token."""
    attention = 2 * length**2 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return float(2 * layer_weights(config) * length + attention)


def encode_flops(config: PixtralVisionConfig, lengths: Sequence[int]) -> float:
    """Operations of encoding pictures of so many patches: products, and attention of every patch to its own picture."""
    size, width = config.vision_hidden_size, config.vision_num_attention_heads * config.vision_head_dim
    layer = 4 * size * width + 3 * size * config.vision_intermediate_size
    weights = config.vision_num_hidden_layers * layer + 3 * config.patch_size**2 * size
    attention = 4 * width * config.vision_num_hidden_layers * sum(length**2 for length in lengths)
    return 2.0 * weights * sum(lengths) + attention
