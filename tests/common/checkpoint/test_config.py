"""Configs of every family in both formats give the published shapes, and nothing else is let in."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaConfig, MistralConfig, PixtralVisionConfig

from common.checkpoint.config import read_end_token_ids, read_model_config, read_preprocessing
from common.checkpoint.files import CheckpointError, CheckpointFormat, find_format
from common.checkpoint.shapes import tensor_shapes
from common.image.preprocessing import PreprocessingMode
from common.model.config import ModelConfig, PixtralConfig
from common.model.config import PixtralVisionConfig as OurVision
from tests.checkpoints import edit_json

PIXTRAL_TEXT: dict[str, Any] = {
    **{"model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "intermediate_size": 14336, "num_hidden_layers": 40, "rms_norm_eps": 1e-5},
    **{"rope_theta": 1e9, "max_position_embeddings": 1024000, "sliding_window": None, "vocab_size": 131072},
}
PIXTRAL_VISION: dict[str, Any] = {
    **{"model_type": "pixtral", "head_dim": 64, "hidden_act": "silu", "image_size": 1024, "patch_size": 16},
    **{"rope_theta": 10000.0, "tie_word_embeddings": False},
}
PIXTRAL: dict[str, Any] = {
    **{"model_type": "llava", "image_token_index": 10, "projector_hidden_act": "gelu", "torch_dtype": "bfloat16"},
    **{"text_config": PIXTRAL_TEXT, "vision_config": PIXTRAL_VISION},
    **{"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
}
LARGE: dict[str, Any] = {
    **PIXTRAL,
    "multimodal_projector_bias": False,
    "text_config": PIXTRAL_TEXT
    | {"hidden_size": 12288, "intermediate_size": 28672, "num_hidden_layers": 88, "num_attention_heads": 96}
    | {"vocab_size": 32768},
    "vision_config": PIXTRAL_VISION
    | {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 40, "head_dim": 88},
}
MISTRAL_7B: dict[str, Any] = {
    **{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "num_hidden_layers": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu"},
}
V01 = MISTRAL_7B | {"sliding_window": 4096, "rope_theta": 1e4, "vocab_size": 32000, "max_position_embeddings": 32768}
V03 = MISTRAL_7B | {"sliding_window": None, "rope_theta": 1e6, "vocab_size": 32768, "max_position_embeddings": 32768}
NEMO = PIXTRAL_TEXT | {"rope_theta": 1e6}

NATIVE_TEXT: dict[str, Any] = {
    **{"dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8},
    **{"rope_theta": 1e9, "norm_eps": 1e-5, "vocab_size": 131072},
}
NATIVE_VISION: dict[str, Any] = {
    **{"hidden_size": 1024, "num_channels": 3, "image_size": 1024, "patch_size": 16, "rope_theta": 10000.0},
    **{"intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "adapter_bias": True},
    "image_token_id": 10,
}
NATIVE = NATIVE_TEXT | {"vision_encoder": NATIVE_VISION}


def hf(directory: Path, config: dict[str, Any], **files: dict[str, Any]) -> Path:
    (directory / "model.safetensors").touch()
    for name, content in {"config": config, **files}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def native(directory: Path, params: dict[str, Any]) -> Path:
    (directory / "consolidated.safetensors").touch()
    (directory / "params.json").write_text(json.dumps(params))
    return directory


def num_parameters(config: ModelConfig) -> int:
    total = 0
    for _, _, shape in tensor_shapes(config):
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        pytest.param(PIXTRAL, 12_682_739_712, 585, id="Pixtral-12B"),
        pytest.param(LARGE, 124_134_845_824, None, id="Pixtral-Large"),
        pytest.param(V01, 7_241_732_096, None, id="7B-v0.1"),
        pytest.param(V03, 7_248_023_552, None, id="7B-v0.3"),
        pytest.param(NEMO, 12_247_782_400, 363, id="Nemo"),
    ],
)
def test_published_configs_make_the_published_numbers_of_parameters(
    config: dict[str, Any], parameters: int, tensors: int | None, tmp_path: Path
) -> None:
    read = read_model_config(hf(tmp_path, config))
    assert num_parameters(read) == parameters
    assert tensors in (None, len(list(tensor_shapes(read))))


def test_seven_billion_v01_has_its_window_and_a_head_dim_that_is_not_stated(tmp_path: Path) -> None:
    config = read_model_config(hf(tmp_path, V01))
    assert not isinstance(config, PixtralConfig)
    assert (config.head_dim, config.sliding_window, config.rope_theta) == (128, 4096, 1e4)


def test_pixtral_large_has_other_heads_and_no_projector_bias(tmp_path: Path) -> None:
    config = read_model_config(hf(tmp_path, LARGE))
    assert isinstance(config, PixtralConfig)
    assert config.vision.vision_head_dim == 88
    assert not config.multimodal_projector_bias
    assert config.vision.vision_attention_multiplier == pytest.approx(88**-0.5)


def test_both_formats_state_the_same_pixtral(tmp_path: Path) -> None:
    theirs = read_model_config(native(tmp_path, NATIVE | {"max_position_embeddings": 1024000}))
    assert theirs == read_model_config(hf(tmp_path, PIXTRAL))


def test_native_vision_may_lie_under_multimodal(tmp_path: Path) -> None:
    flat = read_model_config(native(tmp_path, NATIVE))
    nested = read_model_config(native(tmp_path, NATIVE_TEXT | {"multimodal": {"vision_encoder": NATIVE_VISION}}))
    assert isinstance(flat, PixtralConfig)
    assert nested == flat
    assert not isinstance(read_model_config(native(tmp_path, NATIVE_TEXT | {"multimodal": None})), PixtralConfig)


@pytest.mark.parametrize(
    ("given", "window"),
    [
        *((None, None), (4096, 4096), ("4096", 4096), (" 4096 ", 4096), ([4096], 4096), ([None], None)),
        *(([4096, 4096], 4096), ("4096,4096", 4096), ("null", None)),
    ],
)
def test_native_windows_are_numbers_texts_or_lists(given: object, window: int | None, tmp_path: Path) -> None:
    config = read_model_config(native(tmp_path, NATIVE_TEXT | {"sliding_window": given}))
    assert not isinstance(config, PixtralConfig)
    assert config.sliding_window == window


@pytest.mark.parametrize("given", [[4096, None], "4096,null", [], "x", 0, -1, True, 1.5, {}, [[1]]])
def test_other_windows_are_refused(given: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^params\.json: sliding_window "):
        read_model_config(native(tmp_path, NATIVE_TEXT | {"sliding_window": given}))


def test_transformers_reads_the_same_values_from_what_it_writes(tmp_path: Path) -> None:
    """Its own classes as the oracle, for a config that leaves out all defaults."""
    theirs = LlavaConfig(
        text_config=MistralConfig(num_hidden_layers=3, rms_norm_eps=1e-5),
        vision_config=PixtralVisionConfig(hidden_act="silu"),
        image_token_index=10,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    (tmp_path / "model.safetensors").touch()
    for use_diff in (True, False):
        theirs.to_json_file(tmp_path / "config.json", use_diff=use_diff)
        config = read_model_config(tmp_path)
        assert isinstance(config, PixtralConfig)
        text: Any = theirs.text_config
        vision: Any = theirs.vision_config
        assert config.text.hidden_size == text.hidden_size
        assert config.text.num_attention_heads == text.num_attention_heads
        assert config.text.num_key_value_heads == text.num_key_value_heads
        assert config.text.head_dim == text.head_dim
        assert config.text.num_hidden_layers == text.num_hidden_layers
        assert config.text.feed_forward_length == text.intermediate_size
        assert config.text.vocab_size == text.vocab_size
        assert config.text.rms_norm_eps == text.rms_norm_eps
        assert config.text.rope_theta == text.rope_parameters["rope_theta"]
        assert config.text.max_position_embeddings == text.max_position_embeddings
        assert config.text.sliding_window == text.sliding_window == 4096
        assert config.vision == OurVision(
            patch_size=vision.patch_size,
            image_size=vision.image_size,
            num_channels=vision.num_channels,
            vision_hidden_size=vision.hidden_size,
            vision_num_attention_heads=vision.num_attention_heads,
            vision_num_hidden_layers=vision.num_hidden_layers,
            vision_intermediate_size=vision.intermediate_size,
            vision_head_dim=vision.head_dim,
            vision_rope_theta=vision.rope_parameters["rope_theta"],
        )
        assert config.image_token_index == theirs.image_token_index


def test_keys_of_transformers_four_and_five_mean_the_same(tmp_path: Path) -> None:
    four = read_model_config(hf(tmp_path, PIXTRAL))
    text = {key: value for key, value in PIXTRAL_TEXT.items() if key != "rope_theta"}
    vision = {key: value for key, value in PIXTRAL_VISION.items() if key not in ("rope_theta", "head_dim")}
    five = {key: value for key, value in PIXTRAL.items() if key not in ("image_token_index", "torch_dtype")} | {
        "dtype": "bfloat16",
        "image_token_id": 10,
        "text_config": text | {"rope_parameters": {"rope_theta": 1e9, "rope_type": "default"}},
        "vision_config": vision
        | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "axial"}, "image_size": [1024] * 2},
    }
    assert read_model_config(hf(tmp_path, five)) == four


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config__hidden_act": ...}, "hidden_act must be 'silu'"),
        ({"vision_config__hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"model_type": "mistral3"}, "model_type 'mistral3' is not supported; expected 'llava' or 'mistral'"),
        ({"text_config__model_type": "llama"}, "text_config.model_type 'llama' is not supported"),
        ({"text_config__model_type": ...}, "text_config.model_type None is not supported"),
        ({"vision_config__model_type": "clip_vision_model"}, "expected pixtral"),
        ({"vision_feature_layer": -2}, "vision_feature_layer -2 is not supported"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is not supported"),
        ({"text_config__hidden_act": "gelu"}, "text_config.hidden_act 'gelu' is not supported"),
        ({"text_config__rope_scaling": {"type": "yarn", "factor": 4}}, "text_config.rope_scaling.type 'yarn'"),
        ({"text_config__rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.rope_type 'llama3'"),
        ({"text_config__layer_types": ["sliding_attention", "full_attention"]}, "layers of several kinds"),
        (
            {"text_config__hidden_size": "5120"},
            "text_config.hidden_size must be a whole number of at least 1, got '5120'",
        ),
        ({"text_config__num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1, got 0"),
        ({"text_config__num_attention_heads": True}, "num_attention_heads must be"),
        ({"text_config__num_key_value_heads": 7}, "num_attention_heads 32 is not a multiple of num_key_value_heads 7"),
        ({"text_config__rms_norm_eps": -1e-5}, "rms_norm_eps must be a finite number over 0"),
        ({"text_config__rope_theta": 1e999}, "rope_theta must be a finite number over 0"),
        ({"text_config__head_dim": 127}, "head_dim 127 is odd"),
        ({"text_config__sliding_window": 0}, "sliding_window must be a whole number of at least 1, got 0"),
        ({"vision_config__num_channels": 1}, "num_channels 1 is not 3"),
        ({"vision_config__patch_size": [16, 14]}, "patch_size must be"),
        ({"image_token_index": 131072}, "image_token_index 131072 is outside of vocab_size 131072"),
        ({"text_config": None}, "text_config is missing"),
        ({"text_config": []}, "text_config must be an object"),
    ],
)
def test_what_we_cannot_honour_is_refused_with_file_and_field(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    directory = hf(tmp_path, PIXTRAL)
    edit_json(directory / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        read_model_config(directory)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({key: {"x": 1}}, f"{key} is not supported") for key in ("yarn", "llama_4_scaling", "quantization", "moe")),
        ({"vision_encoder__mm_projector_id": "patch_merge"}, "vision_encoder.mm_projector_id is not supported"),
        ({"vision_encoder__spatial_merge_size": 2}, "vision_encoder.spatial_merge_size 2 is not supported"),
        ({"vision_encoder__image_token_id": ...}, "vision_encoder.image_token_id is missing"),
        ({"dim": ...}, "dim is missing"),
        ({"activation": "gelu"}, "activation 'gelu' is not supported"),
    ],
)
def test_native_models_of_other_kinds_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = native(tmp_path, NATIVE)
    edit_json(directory / "params.json", **changes)
    with pytest.raises(CheckpointError, match=f"^params.json: {message}"):
        read_model_config(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"])
def test_files_that_are_no_json_objects_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (hf(tmp_path, PIXTRAL) / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^config\.json: [^\n]{1,300}$"):
        read_model_config(tmp_path)


def test_a_directory_with_both_formats_is_hugging_faces(tmp_path: Path) -> None:
    hf(native(tmp_path, NATIVE), PIXTRAL)
    assert find_format(tmp_path) is CheckpointFormat.HF
    (tmp_path / "model.safetensors").unlink()  # a config alone is no checkpoint
    assert find_format(tmp_path) is CheckpointFormat.NATIVE


def vision_of(directory: Path) -> OurVision:
    config = read_model_config(directory)
    assert isinstance(config, PixtralConfig)
    return config.vision


def test_preprocessing_comes_from_either_file_of_transformers(tmp_path: Path) -> None:
    settings = {"size": {"longest_edge": 512}, "image_mean": [0.1, 0.2, 0.3], "patch_size": {"height": 16, "width": 16}}
    four = hf(tmp_path, PIXTRAL, preprocessor_config=settings)
    read = read_preprocessing(four, vision_of(four))
    assert (read.image_size, read.mean, read.mode) == (512, (0.1, 0.2, 0.3), PreprocessingMode.HF)
    (tmp_path / "preprocessor_config.json").unlink()
    five = hf(tmp_path, PIXTRAL, processor_config={"image_processor": settings})
    assert read_preprocessing(five, vision_of(five)) == read
    assert read_preprocessing(five, vision_of(five), PreprocessingMode.MISTRAL).mode is PreprocessingMode.MISTRAL


def test_native_preprocessing_takes_the_largest_side_for_images(tmp_path: Path) -> None:
    directory = native(tmp_path, NATIVE)
    edit_json(directory / "params.json", vision_encoder__max_image_size=768)
    read = read_preprocessing(directory, vision_of(directory))
    assert (read.image_size, read.mode) == (768, PreprocessingMode.MISTRAL)
    assert vision_of(directory).image_size == 1024


@pytest.mark.parametrize(
    "settings",
    [
        *({"do_resize": False}, {"do_normalize": False}, {"resample": 2}, {"rescale_factor": 1.0}, {"patch_size": 14}),
        *({"image_mean": [0.5]}, {"image_std": [0.5, 0, 0.5]}, {"size": 512}, {"size": {"longest_edge": -1}}),
    ],
)
def test_preprocessing_that_we_do_not_do_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    directory = hf(tmp_path, PIXTRAL, preprocessor_config=settings)
    with pytest.raises(CheckpointError, match=r"^preprocessor_config\.json: "):
        read_preprocessing(directory, vision_of(directory))


def test_end_tokens_come_from_generation_settings_and_config(tmp_path: Path) -> None:
    assert read_end_token_ids(hf(tmp_path, PIXTRAL)) == frozenset()
    edit_json(tmp_path / "config.json", text_config__eos_token_id=2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert read_end_token_ids(tmp_path) == {2, 5}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(CheckpointError, match=r"^generation_config\.json: eos_token_id must be a whole number"):
        read_end_token_ids(tmp_path)
