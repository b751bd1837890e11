"""The shapes of models that are small enough to be made in a moment, for tests of single parts."""

from common.model.config import MistralConfig, PixtralVisionConfig

SMALL_TEXT = MistralConfig(
    hidden_size=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_hidden_layers=2,
    feed_forward_length=32,
    vocab_size=40,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=128,
)
SMALL_VISION = PixtralVisionConfig(
    patch_size=16,
    image_size=64,
    num_channels=3,
    vision_hidden_size=32,
    vision_num_attention_heads=2,
    vision_num_hidden_layers=1,
    vision_intermediate_size=64,
    vision_head_dim=16,
    vision_rope_theta=10_000.0,
)
