"""The shape of a model in Mistral's own params.json.

Knows its keys and defaults. Does not know tensors.
"""

from typing import Any

from common.checkpoint.files import CheckpointError
from common.checkpoint.json_section import Section
from common.image.preprocessing import Preprocessing
from common.model.config import MistralConfig, ModelConfig, PixtralConfig, PixtralVisionConfig, text_config

_DEFAULT_LENGTH = 128_000
"""Longest sequence of a model that does not state it."""


def parse_native(params: Section) -> ModelConfig:
    """The model of a params.json. Raises CheckpointError for what is not Mistral or Pixtral as we compute it."""
    params.refuse("yarn", "llama_4_scaling", "quantization", "moe", "lora")
    params.expect("activation", "silu")
    text = _text(params)
    vision = vision_section(params)
    if vision is None:
        return text
    vision.refuse("mm_projector_id", "add_pre_mm_projector_layer_norm")
    vision.expect("spatial_merge_size", 1)
    return PixtralConfig(
        text=text,
        vision=_vision(vision),
        image_token_index=vision.whole("image_token_id", minimum=0),
        multimodal_projector_bias=vision.flag("adapter_bias", True),
    )


def vision_section(params: Section) -> Section | None:
    """The encoder's fields, which newer files keep one level deeper; None for a model without pictures."""
    holder = params if params.get("vision_encoder") else params.section("multimodal")
    # Its keys may be there and null.
    return holder.section("vision_encoder") if holder.get("vision_encoder") else None


def _text(params: Section) -> MistralConfig:
    hidden_size, heads = params.whole("dim"), params.whole("n_heads")
    length_key = "max_position_embeddings" if params.has("max_position_embeddings") else "max_seq_len"
    return MistralConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=params.whole("n_kv_heads", heads),
        head_dim=params.whole("head_dim", hidden_size // heads),
        num_hidden_layers=params.whole("n_layers"),
        feed_forward_length=params.whole("hidden_dim"),
        vocab_size=params.whole("vocab_size"),
        rms_norm_eps=params.real("norm_eps"),
        rope_theta=params.real("rope_theta", 10000.0),
        max_position_embeddings=params.whole(length_key, _DEFAULT_LENGTH),
        sliding_window=_sliding_window(params),
    )


def _sliding_window(params: Section) -> int | None:
    """A number, a text of numbers with commas, or a list that repeats over the layers; null sees everything."""
    value = params.get("sliding_window")
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
        value = [None if part.lower() in ("null", "none", "") else part for part in value]
        value = [int(part) if part is not None and part.isdecimal() else part for part in value]
    windows = value if isinstance(value, list) else [value]
    key = "sliding_window"
    checked = {params.with_value(key, window).optional_whole(key, None) for window in windows}
    if len(checked) != 1:
        raise params.error(key, "has layers of several kinds, which is not supported")
    return checked.pop()


def _vision(vision: Section) -> PixtralVisionConfig:
    hidden_size, heads = vision.whole("hidden_size"), vision.whole("num_attention_heads")
    return PixtralVisionConfig(
        patch_size=vision.whole("patch_size"),
        image_size=vision.whole("image_size"),
        num_channels=vision.whole("num_channels", 3),
        vision_hidden_size=hidden_size,
        vision_num_attention_heads=heads,
        vision_num_hidden_layers=vision.whole("num_hidden_layers"),
        vision_intermediate_size=vision.whole("intermediate_size"),
        vision_head_dim=hidden_size // heads,
        vision_rope_theta=vision.real("rope_theta"),
    )


def native_documents(config: ModelConfig, preprocessing: Preprocessing | None) -> dict[str, dict[str, Any]]:
    """The files, by name, that state this shape; `preprocessing` is None for a model without pictures.

    Raises CheckpointError for what the format cannot say.
    """
    text = text_config(config)
    document: dict[str, Any] = {
        "dim": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "head_dim": text.head_dim,
        "hidden_dim": text.feed_forward_length,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "rope_theta": text.rope_theta,
        "norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
    }
    if text.tie_word_embeddings:
        document["tied_embeddings"] = True
    if text.sliding_window is not None:
        document["sliding_window"] = text.sliding_window
    if isinstance(config, PixtralConfig) and preprocessing is not None:
        document["vision_encoder"] = _vision_document(config, preprocessing)
    return {"params.json": document}


def _vision_document(config: PixtralConfig, preprocessing: Preprocessing) -> dict[str, Any]:
    vision = config.vision
    if vision.vision_head_dim * vision.vision_num_attention_heads != vision.vision_hidden_size:
        raise CheckpointError(
            "params.json cannot state a vision_head_dim that is not hidden_size / num_attention_heads"
        )
    document: dict[str, Any] = {
        "hidden_size": vision.vision_hidden_size,
        "num_channels": vision.num_channels,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "rope_theta": vision.vision_rope_theta,
        "intermediate_size": vision.vision_intermediate_size,
        "num_hidden_layers": vision.vision_num_hidden_layers,
        "num_attention_heads": vision.vision_num_attention_heads,
        "adapter_bias": config.multimodal_projector_bias,
        "image_token_id": config.image_token_index,
    }
    if preprocessing.image_size != vision.image_size:
        document["max_image_size"] = preprocessing.image_size
    return document
