"""The shape of a model in Hugging Face's files: config.json and those about pictures.

Knows the keys that transformers 4 and 5 write, and the defaults that they leave out. Does not know tensors.
"""

from typing import Any

from common.checkpoint.files import CheckpointError
from common.checkpoint.json_section import Section
from common.image.preprocessing import Preprocessing
from common.model.config import MistralConfig, ModelConfig, PixtralConfig, PixtralVisionConfig


def parse_hf(config: Section) -> ModelConfig:
    """The model of a config.json. Raises CheckpointError for what is not Mistral or Pixtral as we compute it."""
    # auto_map names code that would replace what we compute; quantised tensors mean other numbers.
    config.refuse("auto_map", "quantization_config")
    if config.get("model_type") == "mistral":
        return _text(config)
    config.expect("model_type", "llava", "mistral")
    text, vision = config.section("text_config", required=True), config.section("vision_config", required=True)
    for section, model_type in ((text, "mistral"), (vision, "pixtral")):
        if section.get("model_type") != model_type:
            raise section.error("model_type", f"{section.get('model_type')!r} is not supported; expected {model_type}")
    config.expect("vision_feature_layer", -1)
    config.expect("vision_feature_select_strategy", "full")
    config.expect("projector_hidden_act", "gelu")
    # Transformers 5 has a second name for it.
    token_key = "image_token_index" if config.has("image_token_index") else "image_token_id"
    return PixtralConfig(
        text=_text(text),
        vision=_vision(vision),
        image_token_index=config.whole(token_key, 10, minimum=0),
        multimodal_projector_bias=config.flag("multimodal_projector_bias", True),
    )


def _text(text: Section) -> MistralConfig:
    """Defaults are those of transformers' MistralConfig, which saved files omit."""
    text.expect("hidden_act", "silu")
    hidden_size, heads = text.whole("hidden_size", 4096), text.whole("num_attention_heads", 32)
    sliding_window = text.optional_whole("sliding_window", 4096)
    kind = "full_attention" if sliding_window is None else "sliding_attention"
    for layer_type in text.get("layer_types") or ():
        if layer_type != kind:
            raise text.error("layer_types", "has layers of several kinds, which is not supported")
    return MistralConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        # Null is as many as there are heads; a missing one is the default.
        num_key_value_heads=text.optional_whole("num_key_value_heads", 8) or heads,
        head_dim=_head_dim(text, hidden_size, heads),
        num_hidden_layers=text.whole("num_hidden_layers", 32),
        feed_forward_length=text.whole("intermediate_size", 14336),
        vocab_size=text.whole("vocab_size", 32000),
        rms_norm_eps=text.real("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(text),
        max_position_embeddings=text.whole("max_position_embeddings", 131072),
        sliding_window=sliding_window,
    )


def _vision(vision: Section) -> PixtralVisionConfig:
    """Defaults are those of transformers' PixtralVisionConfig, whose activation is one we refuse."""
    if vision.get("hidden_act") != "silu":
        raise vision.error("hidden_act", "must be 'silu'; transformers reads a missing one as 'gelu'")
    hidden_size, heads = vision.whole("hidden_size", 1024), vision.whole("num_attention_heads", 16)
    return PixtralVisionConfig(
        patch_size=vision.side("patch_size", 16),
        image_size=vision.side("image_size", 1024),
        num_channels=vision.whole("num_channels", 3),
        vision_hidden_size=hidden_size,
        vision_num_attention_heads=heads,
        vision_num_hidden_layers=vision.whole("num_hidden_layers", 24),
        vision_intermediate_size=vision.whole("intermediate_size", 4096),
        vision_head_dim=_head_dim(vision, hidden_size, heads),
        vision_rope_theta=_rope_theta(vision),
    )


def _head_dim(section: Section, hidden_size: int, heads: int) -> int:
    if section.get("head_dim") is None and hidden_size % heads:
        raise section.error("head_dim", f"is missing, and hidden_size {hidden_size} is no multiple of {heads} heads")
    return section.whole("head_dim", hidden_size // heads)


def _rope_theta(section: Section) -> float:
    """Transformers 4 writes `rope_theta`, 5 writes `rope_parameters`."""
    parameters = section.section("rope_parameters" if section.get("rope_parameters") else "rope_scaling")
    parameters.expect("rope_type", "default", "axial")
    parameters.expect("type", "default", "axial")
    parameters.expect("partial_rotary_factor", 1.0)
    return (parameters if parameters.has("rope_theta") else section).real("rope_theta", 10000.0)


def hf_documents(
    config: ModelConfig, preprocessing: Preprocessing | None, *, torch_dtype: str
) -> dict[str, dict[str, Any]]:
    """The files, by name, that state this shape; `preprocessing` is None for a model without pictures."""
    if isinstance(config, MistralConfig):
        names = {"architectures": ["MistralForCausalLM"], "torch_dtype": torch_dtype}
        return {"config.json": names | _text_document(config)}
    if preprocessing is None:
        raise CheckpointError("a model that takes pictures needs its preprocessing")
    document = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 1,
        "image_token_index": config.image_token_index,
        "model_type": "llava",
        "multimodal_projector_bias": config.multimodal_projector_bias,
        "projector_hidden_act": "gelu",
        "text_config": _text_document(config.text),
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "torch_dtype": torch_dtype,
        "vision_config": _vision_document(config.vision),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    return {
        "config.json": document,
        "preprocessor_config.json": _preprocessor_document(preprocessing),
        "processor_config.json": {
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
            "image_token": "[IMG]",
            "patch_size": preprocessing.patch_size,
            "processor_class": "PixtralProcessor",
        },
    }


def _text_document(text: MistralConfig) -> dict[str, Any]:
    return {
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.feed_forward_length,
        "max_position_embeddings": text.max_position_embeddings,
        "model_type": "mistral",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "sliding_window": text.sliding_window,
        "tie_word_embeddings": text.tie_word_embeddings,
        "vocab_size": text.vocab_size,
    }


def _vision_document(vision: PixtralVisionConfig) -> dict[str, Any]:
    return {
        "head_dim": vision.vision_head_dim,
        "hidden_act": "silu",
        "hidden_size": vision.vision_hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.vision_intermediate_size,
        "model_type": "pixtral",
        "num_attention_heads": vision.vision_num_attention_heads,
        "num_channels": vision.num_channels,
        "num_hidden_layers": vision.vision_num_hidden_layers,
        "patch_size": vision.patch_size,
        "rope_theta": vision.vision_rope_theta,
        "tie_word_embeddings": False,
    }


def _preprocessor_document(preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(preprocessing.mean),
        "image_processor_type": "PixtralImageProcessor",
        "image_std": list(preprocessing.std),
        "patch_size": {"height": preprocessing.patch_size, "width": preprocessing.patch_size},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": preprocessing.image_size},
    }
