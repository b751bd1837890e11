"""Files that are missing, damaged or pickles are refused by name."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.adapter_files import TEXT_LAYERS, edit_tensors, write_adapter
from tests.checkpoints import edit_header
from tests.decoder_service.adapters.loading import refusal
from tests.small_configs import SMALL_TEXT

QUERY_DOWN = f"{TEXT_LAYERS}0.self_attn.q_proj.lora_A.weight"
QUERY_UP = f"{TEXT_LAYERS}0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_adapter(tmp_path, SMALL_TEXT)
    return tmp_path


def test_an_adapter_without_tensors(directory: Path) -> None:
    save_file({}, directory / "adapter_model.safetensors")
    assert refusal(directory).startswith("adapter_model.safetensors: holds no tensors")


def test_quantised_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors.update({QUERY_DOWN: tensors[QUERY_DOWN].to(torch.int8)}))
    assert refusal(directory).startswith(f"adapter_model.safetensors: tensor {QUERY_DOWN}: type I8 is not supported")


def test_a_damaged_file(directory: Path) -> None:
    edit_header(directory / "adapter_model.safetensors", lambda header: header[QUERY_DOWN].pop("dtype"))
    assert refusal(directory).startswith(f"adapter_model.safetensors: tensor {QUERY_DOWN}: ")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert refusal(directory).startswith(f"{name}: missing")


def test_a_missing_directory(directory: Path) -> None:
    assert str(directory / "nowhere") in refusal(directory / "nowhere")


def test_a_config_that_is_no_object(directory: Path) -> None:
    (directory / "adapter_config.json").write_text(json.dumps(["LORA"]))
    assert refusal(directory) == "adapter_config.json: expected a JSON object"


def test_a_pickle_is_never_opened(directory: Path) -> None:
    """A pipe in its place would block whoever opens it."""
    (directory / "adapter_model.safetensors").unlink()
    os.mkfifo(directory / "adapter_model.bin")
    message = refusal(directory)
    assert "adapter_model.bin is a pickle" in message
    assert "expected safetensors" in message
