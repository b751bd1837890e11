"""Which tensors a model of a given shape has, and how large each is.

Knows the names and shapes that a checkpoint must hold. Does not know files or modules; a test holds this list
against the modules that use the tensors. With it a checkpoint is judged whole, by either service and from
headers alone, before a byte of weights is read.
"""

from collections.abc import Iterator
from typing import NamedTuple

from common.checkpoint.layout import Part
from common.model.config import MistralConfig, ModelConfig, PixtralConfig, PixtralVisionConfig, text_config


class TensorShape(NamedTuple):
    """One tensor that must be there."""

    part: Part
    name: str
    """Name inside the part's module."""
    shape: tuple[int, ...]


def tensor_shapes(config: ModelConfig) -> Iterator[TensorShape]:
    """Every tensor of the model, layer by layer; lazily, as a config may claim any number of layers."""
    yield from _named(Part.DECODER, _decoder(text_config(config)))
    if isinstance(config, PixtralConfig):
        yield from _named(Part.PROJECTOR, _projector(config))
        yield from _named(Part.VISION, _vision(config.vision))


_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _named(part: Part, shapes: _Shapes) -> Iterator[TensorShape]:
    for name, shape in shapes:
        yield TensorShape(part, name, shape)


def _decoder(text: MistralConfig) -> _Shapes:
    size, inner = text.hidden_size, text.feed_forward_length
    query, key_value = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    yield "model.embed_tokens.weight", (text.vocab_size, size)
    for index in range(text.num_hidden_layers):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (size,)
        yield f"{layer}.self_attn.q_proj.weight", (query, size)
        yield f"{layer}.self_attn.k_proj.weight", (key_value, size)
        yield f"{layer}.self_attn.v_proj.weight", (key_value, size)
        yield f"{layer}.self_attn.o_proj.weight", (size, query)
        yield f"{layer}.post_attention_layernorm.weight", (size,)
        yield from _feed_forward(f"{layer}.mlp", size, inner)
    yield "model.norm.weight", (size,)
    if not text.tie_word_embeddings:
        yield "lm_head.weight", (text.vocab_size, size)


def _projector(config: PixtralConfig) -> _Shapes:
    size = config.text.hidden_size
    for name, width in (("linear_1", config.vision.vision_hidden_size), ("linear_2", size)):
        yield f"{name}.weight", (size, width)
        if config.multimodal_projector_bias:
            yield f"{name}.bias", (size,)


def _vision(vision: PixtralVisionConfig) -> _Shapes:
    size, heads = vision.vision_hidden_size, vision.vision_num_attention_heads * vision.vision_head_dim
    yield "patch_conv.weight", (size, vision.num_channels, vision.patch_size, vision.patch_size)
    yield "ln_pre.weight", (size,)
    for index in range(vision.vision_num_hidden_layers):
        layer = f"transformer.layers.{index}"
        yield f"{layer}.attention_norm.weight", (size,)
        for projection in "qkv":
            yield f"{layer}.attention.{projection}_proj.weight", (heads, size)
        yield f"{layer}.attention.o_proj.weight", (size, heads)
        yield f"{layer}.ffn_norm.weight", (size,)
        yield from _feed_forward(f"{layer}.feed_forward", size, vision.vision_intermediate_size)


def _feed_forward(prefix: str, size: int, inner: int) -> _Shapes:
    yield f"{prefix}.gate_proj.weight", (inner, size)
    yield f"{prefix}.up_proj.weight", (inner, size)
    yield f"{prefix}.down_proj.weight", (size, inner)
