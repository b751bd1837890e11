"""Random adapters, written by hand in exactly the layout of PEFT's files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.checkpoint.layout import Part
from common.checkpoint.shapes import tensor_shapes
from common.model.config import MistralConfig
from decoder_service.adapters.adapter import MODULES

TEXT_LAYERS = "base_model.model.model.layers."
VISION_LAYERS = "base_model.model.model.language_model.layers."
"""As transformers names them in memory since 4.52."""
OLD_VISION_LAYERS = "base_model.model.language_model.model.layers."


def write_adapter(
    directory: Path,
    config: MistralConfig,
    *,
    rank: int = 4,
    seed: int = 0,
    modules: Sequence[str] = MODULES,
    has_vision: bool = False,
    scale: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter of every layer's `modules` for a decoder of this shape.

    With the scale of 2 a change is about as large as a random model's weight that it is added to.
    """
    generator = torch.Generator().manual_seed(seed)
    prefix = VISION_LAYERS if has_vision else TEXT_LAYERS
    tensors: dict[str, Tensor] = {}
    for part, name, shape in tensor_shapes(config):
        module = name.removeprefix("model.layers.").removesuffix(".weight")
        if part is Part.DECODER and module.partition(".")[2] in modules:
            out_features, in_features = shape
            down = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
            up = torch.randn(out_features, rank, generator=generator) * 0.5 * rank**-0.5
            tensors[f"{prefix}{module}.lora_A.weight"] = down.to(dtype)
            tensors[f"{prefix}{module}.lora_B.weight"] = up.to(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    content = config_content(rank=rank, alpha=scale * rank, modules=modules)
    (directory / "adapter_config.json").write_text(json.dumps(content, indent=2))


def config_content(*, rank: int, alpha: float, modules: Sequence[str] = MODULES) -> dict[str, Any]:
    """Every field that PEFT 0.21 writes."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "base",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }


def edit_tensors(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change which tensors an adapter's file holds, or what is in them."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
