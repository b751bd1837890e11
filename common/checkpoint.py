"""Loads the tensors of a checkpoint directory into modules, strictly and one at a time.

Knows safetensors files. Does not know model arithmetic. Only safetensors are read: a pickle can run code.
A tensor that is missing, left over or of the wrong shape is an error that names it and its file.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.checkpoint_config import (
    CheckpointError,
    CheckpointFormat,
    ModelConfig,
    find_format,
    read_end_token_ids,
    read_json,
    read_model_config,
)
from common.checkpoint_layout import Part, Place, place
from common.model_config import MistralConfig, PixtralConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One tensor: where it lies and where it goes."""

    file: Path
    stored_name: str
    place: Place


class Checkpoint:
    """An opened checkpoint directory; `open_checkpoint` makes it."""

    def __init__(self, directory: Path, config: ModelConfig, entries: dict[Part, list[_Entry]]) -> None:
        self.directory = directory
        self.config = config
        self._entries = entries

    @property
    def text_config(self) -> MistralConfig:
        """Shape of the decoder."""
        return self.config.text if isinstance(self.config, PixtralConfig) else self.config

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end a completion; empty where the checkpoint does not say."""
        return read_end_token_ids(self.directory)

    def load(self, part: Part, module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
        """Give every parameter of a module that was built on the meta device its tensor.

        Memory peaks at the part's weights plus one tensor. Raises CheckpointError.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        state: dict[str, Tensor] = {}
        for entry, tensor in self._tensors(part):
            name = entry.place.name
            if name not in wanted:
                raise CheckpointError(f"{entry.file.name}: tensor {entry.stored_name} is left over")
            if tuple(tensor.shape) != wanted[name]:
                raise CheckpointError(
                    f"{entry.file.name}: tensor {entry.stored_name} has shape {tuple(tensor.shape)}, "
                    f"expected {wanted[name]}"
                )
            if entry.place.permuted_heads:
                tensor = _half_split(tensor, self._head_dim(part))
            # The copy leaves the mapped file, which may change or vanish under a running service.
            state[name] = tensor.to(device=device, dtype=dtype, copy=True)
        missing = sorted(wanted.keys() - state.keys())
        if missing:
            raise CheckpointError(f"{self.directory.name}: tensor {part.value}.{missing[0]} is missing")
        module.load_state_dict(state, strict=True, assign=True)

    def digest(self, part: Part) -> bytes:
        """SHA-256 over the names, types, shapes and raw bytes of a part's tensors, streamed."""
        digest = hashlib.sha256()
        for entry, tensor in self._tensors(part):
            digest.update(f"{entry.place.name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.digest()

    def _tensors(self, part: Part) -> Iterator[tuple[_Entry, Tensor]]:
        for entry in self._entries.get(part, []):
            try:
                with safe_open(entry.file, framework="pt") as file:
                    tensor: Tensor = file.get_tensor(entry.stored_name)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{entry.file.name}: tensor {entry.stored_name}: {error}") from error
            yield entry, tensor

    def _head_dim(self, part: Part) -> int:
        if part is Part.VISION and isinstance(self.config, PixtralConfig):
            return self.config.vision.vision_head_dim
        return self.text_config.head_dim


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the shape of the model and find every tensor. Raises CheckpointError."""
    config = read_model_config(directory)
    layout = find_format(directory)
    has_vision = isinstance(config, PixtralConfig)
    entries: dict[Part, list[_Entry]] = {}
    for file, stored_name in _stored_names(directory, layout):
        where = place(stored_name, layout=layout, has_vision=has_vision)
        if where is None or (where.part is not Part.DECODER and not has_vision):
            raise CheckpointError(f"{file.name}: tensor {stored_name} is left over")
        entries.setdefault(where.part, []).append(_Entry(file=file, stored_name=stored_name, place=where))
    for part in entries:
        # A fixed order, so that a digest does not depend on how the tensors are spread over files.
        entries[part].sort(key=lambda entry: entry.place.name)
    return Checkpoint(directory, _tied_as_stored(config, entries), entries)


def _stored_names(directory: Path, layout: CheckpointFormat) -> Iterator[tuple[Path, str]]:
    pattern = "model*.safetensors" if layout is CheckpointFormat.HF else "consolidated*.safetensors"
    files = sorted(directory.glob(pattern))
    index = directory / "model.safetensors.index.json"
    if layout is CheckpointFormat.HF and index.is_file():
        files = [directory / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file.name}: cannot be read: {error}") from error
        yield from ((file, name) for name in names)


def _tied_as_stored(config: ModelConfig, entries: dict[Part, list[_Entry]]) -> ModelConfig:
    """Embeddings are tied exactly when there is no head, whatever a default of the config says."""
    has_head = any(entry.place.name == "lm_head.weight" for entry in entries.get(Part.DECODER, []))
    if isinstance(config, PixtralConfig):
        return dataclasses.replace(config, text=dataclasses.replace(config.text, tie_word_embeddings=not has_head))
    return dataclasses.replace(config, tie_word_embeddings=not has_head)


def _half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows [num_heads * head_dim, in] from pairs (2j, 2j + 1) to halves (j, j + head_dim / 2)."""
    pairs: Tensor = weight.unflatten(0, (-1, head_dim // 2, 2))
    return pairs.transpose(1, 2).reshape(weight.shape)
