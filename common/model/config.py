"""The shape of a model, as its checkpoint states it.

Knows the fields and the relations between them. Does not know file formats (see `common/checkpoint/config.py`),
devices, or how a service is run.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MistralConfig:
    """Mistral decoder: a pre-norm transformer with grouped-query attention and rotary positions."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    """Stated by itself: `num_attention_heads * head_dim` need not equal `hidden_size` (Nemo, Pixtral)."""
    num_hidden_layers: int
    feed_forward_length: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    """Longest sequence in tokens, prompt and completion together."""
    sliding_window: int | None = None
    """Keys that a query sees, itself included; `None` means all earlier ones."""
    tie_word_embeddings: bool = False
    """Whether the output head is the embedding table; true exactly when the checkpoint has no head."""

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need pairs")

    @property
    def attention_multiplier(self) -> float:
        """Factor on the query-key products before the softmax."""
        return float(self.head_dim**-0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixtralVisionConfig:
    """Pixtral patch encoder: a transformer over patches with two-dimensional rotary positions."""

    patch_size: int
    """Side of a square patch in pixels."""
    image_size: int
    """Longest side in pixels that an image keeps; larger ones are scaled down to it."""
    num_channels: int
    vision_hidden_size: int
    vision_num_attention_heads: int
    vision_num_hidden_layers: int
    vision_intermediate_size: int
    vision_head_dim: int
    vision_rope_theta: float
    vision_rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.num_channels != 3:
            raise ValueError(f"num_channels {self.num_channels} is not 3; pictures are decoded to red, green and blue")
        if self.vision_head_dim % 4:
            raise ValueError(f"vision_head_dim {self.vision_head_dim} is not a multiple of 4 (two axes of pairs)")

    @property
    def vision_attention_multiplier(self) -> float:
        """Factor on the query-key products before the softmax."""
        return float(self.vision_head_dim**-0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixtralConfig:
    """A whole Pixtral: the patch encoder, the projector and the decoder."""

    text: MistralConfig
    vision: PixtralVisionConfig
    image_token_index: int
    """Token id whose embedding is replaced by an image feature row."""
    multimodal_projector_bias: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.image_token_index < self.text.vocab_size:
            raise ValueError(
                f"image_token_index {self.image_token_index} is outside of vocab_size {self.text.vocab_size}"
            )


ModelConfig = PixtralConfig | MistralConfig


def text_config(config: ModelConfig) -> MistralConfig:
    """Shape of a model's decoder."""
    return config.text if isinstance(config, PixtralConfig) else config
