"""Tensors of an adapter that do not fit, or of parts that we do not change, are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapter_files import TEXT_LAYERS, edit_tensors, write_adapter
from tests.checkpoints import edit_json
from tests.decoder_service.adapters.loading import load, refusal
from tests.small_configs import SMALL_TEXT

QUERY_DOWN = f"{TEXT_LAYERS}0.self_attn.q_proj.lora_A.weight"
QUERY_UP = f"{TEXT_LAYERS}0.self_attn.q_proj.lora_B.weight"

Tensors = dict[str, Tensor]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_adapter(tmp_path, SMALL_TEXT)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("base_model.model.lm_head.lora_A.weight", (4, 16)),
        ("base_model.model.lm_head.weight", (40, 16)),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (4, 40)),
        ("base_model.model.model.embed_tokens.weight", (40, 16)),
        ("base_model.model.model.norm.weight", (16,)),
        (f"{TEXT_LAYERS}0.input_layernorm.weight", (16,)),
        (f"{TEXT_LAYERS}0.self_attn.q_proj.bias", (16,)),
        (f"{TEXT_LAYERS}0.self_attn.q_proj.lora_B.bias", (16,)),
        (f"{TEXT_LAYERS}0.self_attn.q_proj.lora_magnitude_vector", (16,)),
        (f"{TEXT_LAYERS}0.self_attn.q_proj.lora_A.default.weight", (4, 16)),
        (f"{TEXT_LAYERS}0.self_attn.qkv_proj.lora_A.weight", (4, 16)),
        (f"{TEXT_LAYERS}00.self_attn.q_proj.lora_A.weight", (4, 16)),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 16)),
        ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", (4, 16)),
    ],
)
def test_tensors_of_other_parts_and_other_kinds(directory: Path, name: str, shape: tuple[int, ...]) -> None:
    edit_tensors(directory, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    message = refusal(directory)
    assert message.startswith(f"adapter_model.safetensors: tensor {name} is not supported; expected base_model.model.")
    assert "self_attn.q_proj" in message.partition("expected")[2]


@pytest.mark.parametrize("has_vision", [True, False])
def test_an_adapter_of_a_model_of_the_other_kind(tmp_path: Path, has_vision: bool) -> None:
    write_adapter(tmp_path, SMALL_TEXT, has_vision=not has_vision)
    kinds = (
        "without pictures; expected one for a model with" if has_vision else "with pictures; expected one for a model"
    )
    assert f"is named as in a model {kinds}" in refusal(tmp_path, has_vision=has_vision)


@pytest.mark.parametrize(
    "module",
    [
        "model.vision_tower.transformer.layers.0.attention.q_proj",
        "vision_tower.transformer.layers.0.attention.q_proj",
        "model.multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
    ],
)
def test_adapters_of_the_vision_part(tmp_path: Path, module: str) -> None:
    write_adapter(tmp_path, SMALL_TEXT, has_vision=True)
    name = f"base_model.model.{module}.lora_A.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: torch.zeros(4, 16)}))
    message = refusal(tmp_path, has_vision=True)
    assert message.startswith(f"adapter_model.safetensors: tensor {name} ")
    assert message.endswith("adapters of the vision part are not supported")


@pytest.mark.parametrize(("there", "missing"), [(QUERY_DOWN, "lora_B"), (QUERY_UP, "lora_A")])
def test_half_a_change(directory: Path, there: str, missing: str) -> None:
    other = QUERY_UP if there == QUERY_DOWN else QUERY_DOWN
    edit_tensors(directory, lambda tensors: tensors.__delitem__(other))
    assert refusal(directory) == (
        f"adapter_model.safetensors: tensor {there} is there without its {missing}; expected both"
    )


def test_a_change_under_both_layouts_names(tmp_path: Path) -> None:
    write_adapter(tmp_path, SMALL_TEXT, has_vision=True)
    name = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: torch.zeros(4, 16)}))
    assert "is the same as" in refusal(tmp_path, has_vision=True)


def test_a_layer_beyond_the_models(directory: Path) -> None:
    name = f"{TEXT_LAYERS}2.self_attn.q_proj.lora_A.weight"
    edit_tensors(directory, lambda tensors: tensors.update({name: torch.zeros(4, 16)}))
    assert refusal(directory) == (
        f"adapter_model.safetensors: tensor {name} is beyond the model's layers; expected layers 0 to 1"
    )


def _narrow(tensors: Tensors) -> None:
    tensors[QUERY_DOWN] = tensors[QUERY_DOWN][:, :8].contiguous()


def _short(tensors: Tensors) -> None:
    tensors[QUERY_UP] = tensors[QUERY_UP][:8].contiguous()


def _thin(tensors: Tensors) -> None:
    tensors[QUERY_DOWN] = tensors[QUERY_DOWN][:2].contiguous()


def _flat(tensors: Tensors) -> None:
    tensors[QUERY_UP] = tensors[QUERY_UP].flatten()


@pytest.mark.parametrize(
    ("change", "name", "found", "expected"),
    [
        (_narrow, QUERY_DOWN, [4, 8], [4, 16]),
        (_short, QUERY_UP, [8, 4], [16, 4]),
        (_thin, QUERY_DOWN, [2, 16], [4, 16]),
        (_flat, QUERY_UP, [64], [16, 4]),
    ],
)
def test_shapes_that_do_not_fit(
    directory: Path, change: Callable[[Tensors], None], name: str, found: list[int], expected: list[int]
) -> None:
    edit_tensors(directory, change)
    assert refusal(directory) == f"adapter_model.safetensors: tensor {name} has shape {found}, expected {expected}"


@pytest.mark.parametrize("changes", [{"r": 8}, {"rank_pattern": {"q_proj": 8}}])
def test_a_rank_that_the_tensors_do_not_have(directory: Path, changes: dict[str, Any]) -> None:
    edit_json(directory / "adapter_config.json", **changes)
    message = refusal(directory)
    assert ".lora_A.weight has shape [4, " in message
    assert "expected [8, " in message


def test_a_rank_above_the_limit(directory: Path) -> None:
    assert refusal(directory, max_rank=3).endswith("has rank 4, expected at most 3, see --max-lora-rank")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [QUERY_DOWN, QUERY_UP])
def test_values_that_are_not_finite(directory: Path, name: str, value: float) -> None:
    edit_tensors(directory, lambda tensors: tensors[name].__setitem__((1, 2), value))
    assert refusal(directory) == (
        f"adapter_model.safetensors: tensor {name} holds a value that is not finite as float32"
    )


def test_values_that_the_decoders_type_cannot_hold(directory: Path) -> None:
    edit_json(directory / "adapter_config.json", alpha_pattern={"layers.0.self_attn.q_proj": 1e7})
    assert load(directory).changes
    assert refusal(directory, dtype=torch.float16).endswith(
        f"tensor {QUERY_UP} holds a value that is not finite as float16"
    )
