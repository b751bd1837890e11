"""Checkpoints for tests: what loading one gives, and how to break one."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoint.checkpoint import Checkpoint, open_checkpoint
from common.checkpoint.layout import Part
from common.model.config import ModelConfig, PixtralConfig
from common.model.weight_types import WeightTypes
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.projector import Projector
from tests.tiny_models import Shape, random_pixtral, random_text_model, save
from vision_service.model.encoder import PixtralVisionModel

CPU = torch.device("cpu")
SMALL = Shape(name="small", hidden=16, heads=2, kv_heads=1, head_dim=8, layers=1, vision_heads=2, vision_head_dim=8)

State = dict[str, Tensor]


@dataclass
class Loader:
    """Loads every part of a checkpoint, as the two services do together; builds each kind of module once."""

    _modules: dict[ModelConfig, dict[Part, nn.Module]] = field(default_factory=dict)

    def load(self, directory: Path, *, verify_checksums: bool = False) -> State:
        """All tensors by part and name. Raises CheckpointError."""
        checkpoint = open_checkpoint(directory, verify_checksums=verify_checksums)
        state: State = {}
        for part, module in self._parts(checkpoint).items():
            checkpoint.load(part, module, device=CPU, types=WeightTypes(torch.float32))
            state |= {f"{part.value}.{name}": tensor for name, tensor in module.state_dict().items()}
        checkpoint.finish_checks()
        return state

    def _parts(self, checkpoint: Checkpoint) -> dict[Part, nn.Module]:
        if checkpoint.config not in self._modules:
            self._modules[checkpoint.config] = build_parts(checkpoint.config)
        return self._modules[checkpoint.config]


def build_parts(config: ModelConfig) -> dict[Part, nn.Module]:
    """The modules of a model, without memory."""
    with torch.device("meta"):
        if not isinstance(config, PixtralConfig):
            return {Part.DECODER: MistralForCausalLM(config)}
        return {
            Part.DECODER: MistralForCausalLM(config.text),
            Part.PROJECTOR: Projector(config),
            Part.VISION: PixtralVisionModel(config.vision),
        }


def save_pixtral(directory: Path, shape: Shape = SMALL) -> Path:
    """A random Pixtral in Hugging Face's format."""
    return save(random_pixtral(shape), directory)


def save_text(directory: Path, shape: Shape = SMALL) -> Path:
    """A random Mistral in Hugging Face's format."""
    return save(random_text_model(shape), directory)


def edit_json(path: Path, **changes: Any) -> None:  # noqa: ANN401 - what JSON may be
    """Set fields of a JSON file; `a__b` is field b of object a, and ... removes a field."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = content
        for key in outer:
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(content))


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a safetensors file and leave its tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
