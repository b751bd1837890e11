"""Reads the shape of a model from a checkpoint directory, without opening a tensor.

Knows the two file formats and their defaults. Does not know tensors (see `checkpoint`) or tokenizers.
A value that we cannot honour is an error here, at start, and never a silent approximation.
"""

import json
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from common.model_config import MistralConfig, PixtralConfig, PixtralVisionConfig
from common.preprocessing import Preprocessing, PreprocessingMode

ModelConfig = PixtralConfig | MistralConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CheckpointError(ValueError):
    """A checkpoint cannot be served; the message is one line that names the file."""


class CheckpointFormat(Enum):
    """Who wrote the directory."""

    HF = "hf"
    """config.json and model*.safetensors, as transformers writes them."""
    NATIVE = "native"
    """params.json and consolidated*.safetensors, as Mistral writes them."""


def find_format(directory: Path) -> CheckpointFormat:
    """Tell the format by its files; a directory that holds both is read as Hugging Face's.

    Raises CheckpointError where there is neither.
    """
    if (directory / "config.json").is_file() and any(directory.glob("model*.safetensors")):
        return CheckpointFormat.HF
    if (directory / "params.json").is_file() and any(directory.glob("consolidated*.safetensors")):
        return CheckpointFormat.NATIVE
    raise CheckpointError(
        f"{directory}: no checkpoint here; expected config.json with model*.safetensors, "
        "or params.json with consolidated*.safetensors"
    )


def read_model_config(directory: Path) -> ModelConfig:
    """Shape of the model in the directory; a PixtralConfig exactly when it sees pictures.

    Raises CheckpointError naming the file and the field.
    """
    is_hf = find_format(directory) is CheckpointFormat.HF
    name = "config.json" if is_hf else "params.json"
    content = read_json(directory / name)
    try:
        return _parse_hf(content) if is_hf else _parse_native(content)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: bad or missing field: {error}") from error


def read_preprocessing(
    directory: Path, vision: PixtralVisionConfig, mode: PreprocessingMode | None = None
) -> Preprocessing:
    """How the checkpoint wants its pictures; `mode` overrules the one that belongs to its format."""
    if find_format(directory) is CheckpointFormat.NATIVE:
        return _preprocessing({}, vision, mode or PreprocessingMode.MISTRAL)
    settings: Mapping[str, Any] = {}
    if (directory / "preprocessor_config.json").is_file():
        settings = read_json(directory / "preprocessor_config.json")
    elif (directory / "processor_config.json").is_file():
        settings = read_json(directory / "processor_config.json").get("image_processor", {})
    return _preprocessing(settings, vision, mode or PreprocessingMode.HF)


def read_end_token_ids(directory: Path) -> frozenset[int]:
    """Ids that end a completion, by the checkpoint's own generation settings; empty where it has none."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            content = read_json(directory / name)
            value = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
            if value is not None:
                found.update(value if isinstance(value, list) else [value])
    return frozenset(found)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object; raises CheckpointError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name}: expected a JSON object")
    return content


def _parse_hf(content: Mapping[str, Any]) -> ModelConfig:
    model_type = content.get("model_type")
    if model_type == "mistral":
        return _hf_text(content)
    if model_type != "llava" or content.get("vision_config", {}).get("model_type") != "pixtral":
        raise CheckpointError(f"model_type {model_type!r} is neither mistral nor llava with a pixtral vision tower")
    _expect(content, "vision_feature_layer", -1)
    _expect(content, "vision_feature_select_strategy", "full")
    _expect(content, "projector_hidden_act", "gelu")
    return PixtralConfig(
        text=_hf_text(content["text_config"]),
        vision=_hf_vision(content["vision_config"]),
        image_token_index=content.get("image_token_index", content.get("image_token_id", 10)),
        multimodal_projector_bias=content.get("multimodal_projector_bias", True),
    )


def _hf_text(text: Mapping[str, Any]) -> MistralConfig:
    """Defaults are those of transformers' MistralConfig, which saved files omit."""
    _expect(text, "hidden_act", "silu")
    hidden_size, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    return MistralConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=text.get("num_key_value_heads", 8),
        head_dim=text.get("head_dim") or hidden_size // heads,
        num_hidden_layers=text.get("num_hidden_layers", 32),
        feed_forward_length=text.get("intermediate_size", 14336),
        vocab_size=text.get("vocab_size", 32000),
        rms_norm_eps=text.get("rms_norm_eps", 1e-6),
        rope_theta=_hf_rope_theta(text),
        max_position_embeddings=text.get("max_position_embeddings", 131072),
        sliding_window=text.get("sliding_window", 4096),
    )


def _hf_vision(vision: Mapping[str, Any]) -> PixtralVisionConfig:
    """Defaults are those of transformers' PixtralVisionConfig, whose activation is one we refuse."""
    if vision.get("hidden_act", "gelu") != "silu":
        raise CheckpointError("vision_config.hidden_act must be 'silu'; transformers reads a missing one as 'gelu'")
    hidden_size, heads = vision.get("hidden_size", 1024), vision.get("num_attention_heads", 16)
    return PixtralVisionConfig(
        patch_size=vision.get("patch_size", 16),
        image_size=vision.get("image_size", 1024),
        num_channels=vision.get("num_channels", 3),
        vision_hidden_size=hidden_size,
        vision_num_attention_heads=heads,
        vision_num_hidden_layers=vision.get("num_hidden_layers", 24),
        vision_intermediate_size=vision.get("intermediate_size", 4096),
        vision_head_dim=vision.get("head_dim") or hidden_size // heads,
        vision_rope_theta=_hf_rope_theta(vision),
    )


def _hf_rope_theta(section: Mapping[str, Any]) -> float:
    """Transformers 4 writes `rope_theta`, 5 writes `rope_parameters`."""
    parameters = section.get("rope_parameters") or section.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "axial"):
        raise CheckpointError(f"rope_type {kind!r} is not supported")
    return float(parameters.get("rope_theta", section.get("rope_theta", 10000.0)))


def _parse_native(params: Mapping[str, Any]) -> ModelConfig:
    for key in ("yarn", "llama_4_scaling", "quantization", "moe"):
        if params.get(key):
            raise CheckpointError(f"{key} is not supported")
    text = MistralConfig(
        hidden_size=params["dim"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
        head_dim=params.get("head_dim") or params["dim"] // params["n_heads"],
        num_hidden_layers=params["n_layers"],
        feed_forward_length=params["hidden_dim"],
        vocab_size=params["vocab_size"],
        rms_norm_eps=params["norm_eps"],
        rope_theta=float(params.get("rope_theta", 10000.0)),
        max_position_embeddings=params.get("max_position_embeddings", params.get("max_seq_len", 128_000)),
        sliding_window=params.get("sliding_window"),
    )
    vision = params.get("vision_encoder") or params.get("multimodal", {}).get("vision_encoder")
    if vision is None:
        return text
    for key in ("mm_projector_id", "add_pre_mm_projector_layer_norm"):
        if vision.get(key):
            raise CheckpointError(f"vision_encoder.{key} is not supported")
    return PixtralConfig(
        text=text,
        vision=PixtralVisionConfig(
            patch_size=vision["patch_size"],
            image_size=vision.get("max_image_size", vision["image_size"]),
            num_channels=vision.get("num_channels", 3),
            vision_hidden_size=vision["hidden_size"],
            vision_num_attention_heads=vision["num_attention_heads"],
            vision_num_hidden_layers=vision["num_hidden_layers"],
            vision_intermediate_size=vision["intermediate_size"],
            vision_head_dim=vision["hidden_size"] // vision["num_attention_heads"],
            vision_rope_theta=float(vision["rope_theta"]),
        ),
        image_token_index=vision["image_token_id"],
        multimodal_projector_bias=vision.get("adapter_bias", True),
    )


def _preprocessing(settings: Mapping[str, Any], vision: PixtralVisionConfig, mode: PreprocessingMode) -> Preprocessing:
    size = settings.get("size", {})
    return Preprocessing(
        mode=mode,
        patch_size=vision.patch_size,
        image_size=size.get("longest_edge", vision.image_size),
        mean=_three(settings.get("image_mean", CLIP_MEAN)),
        std=_three(settings.get("image_std", CLIP_STD)),
    )


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _expect(section: Mapping[str, Any], key: str, value: object) -> None:
    if section.get(key, value) != value:
        raise CheckpointError(f"{key} {section[key]!r} is not supported; expected {value!r}")
