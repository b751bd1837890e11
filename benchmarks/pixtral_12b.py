"""The shape of Pixtral-12B, of its decoder and of its encoder. Needs nothing but our configs."""

from common.model.config import MistralConfig, PixtralVisionConfig

DECODER_12B = MistralConfig(
    hidden_size=5120,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_hidden_layers=40,
    feed_forward_length=14336,
    vocab_size=131072,
    rms_norm_eps=1e-5,
    rope_theta=1e9,
    max_position_embeddings=131072,
)

ENCODER_400M = PixtralVisionConfig(
    patch_size=16,
    image_size=1024,
    num_channels=3,
    vision_hidden_size=1024,
    vision_num_attention_heads=16,
    vision_num_hidden_layers=24,
    vision_intermediate_size=4096,
    vision_head_dim=64,
    vision_rope_theta=1e4,
)
