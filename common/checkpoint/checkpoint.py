"""Loads the tensors of a checkpoint directory into modules, strictly and one at a time.

Knows which tensors there must be. Does not know model arithmetic. Only safetensors are read: a pickle can run
code. A tensor that is missing, left over or of the wrong shape is an error that names it and its file.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common.checkpoint.checksums import MANIFEST_NAME, ChecksumCheck
from common.checkpoint.config import read_end_token_ids, read_model_config
from common.checkpoint.files import CheckpointError, CheckpointFormat, WeightFiles, find_format, find_weights
from common.checkpoint.layout import Part, Place, place, stored_name
from common.checkpoint.pinned_reading import PinnedReader
from common.checkpoint.rotary_order import half_split
from common.checkpoint.safetensors_file import StoredTensor, read_header, shown
from common.checkpoint.shapes import tensor_shapes
from common.model.config import MistralConfig, ModelConfig, PixtralConfig, PixtralVisionConfig, text_config
from common.model.devices import mark_for
from common.model.weight_types import WeightTypes

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor: where it lies and where it goes."""

    stored: StoredTensor
    place: Place


class Checkpoint:
    """An opened checkpoint directory, whose headers have been judged; `open_checkpoint` makes it."""

    def __init__(
        self,
        directory: Path,
        config: ModelConfig,
        entries: list[Entry],
        *,
        layout: CheckpointFormat,
        check: ChecksumCheck | None = None,
    ) -> None:
        self.directory = directory
        self.config = config
        self.layout = layout
        self._entries = entries
        self._check = check

    @property
    def text_config(self) -> MistralConfig:
        """Shape of the decoder."""
        return text_config(self.config)

    @property
    def vision_config(self) -> PixtralVisionConfig:
        """Shape of the encoder. Raises CheckpointError for a model without one."""
        if not isinstance(self.config, PixtralConfig):
            raise CheckpointError(f"{self.directory}: the model takes no pictures")
        return self.config.vision

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end a completion; empty where the checkpoint does not say."""
        return read_end_token_ids(self.directory)

    def entries(self, part: Part) -> list[Entry]:
        """The tensors of a part, in the order of their names, however they are spread over files."""
        return [entry for entry in self._entries if entry.place.part is part]

    def load(self, part: Part, module: nn.Module, *, device: torch.device, types: WeightTypes) -> None:
        """Give every parameter of a module that was built on the meta device its tensor.

        Memory peaks at the part's weights plus one tensor. Raises CheckpointError.
        """
        state = dict(self.tensors(part, module, device=device, types=types))
        module.load_state_dict(state, strict=True, assign=True)

    def tensors(
        self, part: Part, module: nn.Module, *, device: torch.device, types: WeightTypes
    ) -> Iterator[tuple[str, Tensor]]:
        """Read a tensor for every parameter of a module, one at a time. Raises CheckpointError."""
        self._check_fit(part, module)
        read_stored: Callable[[StoredTensor], Tensor] = StoredTensor.read
        if device.type == "cuda":
            read_stored = PinnedReader(device, mark_for(device)).read

        def read(entry: Entry) -> Tensor:
            tensor = self._in_our_order(entry, read_stored(entry.stored))
            return tensor.to(device=device, dtype=types.of(tensor.dtype, tensor.ndim))

        return ((entry.place.name, read(entry)) for entry in self.entries(part))

    def _check_fit(self, part: Part, module: nn.Module) -> None:
        wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = {entry.place.name: entry.stored for entry in self.entries(part)}
        for name in sorted(wanted.keys() | found.keys()):
            # The headers have been judged by the config; this says that the module is what the config says.
            if name not in wanted or name not in found or found[name].shape != wanted[name]:
                raise CheckpointError(f"{self.directory.name}: tensor {part.value}.{name} does not fit its module")

    def _in_our_order(self, entry: Entry, tensor: Tensor) -> Tensor:
        if not entry.place.permuted_heads:
            return tensor
        return half_split(tensor, head_dim(self.config, entry.place.part))

    def digest(self, part: Part) -> bytes:
        """SHA-256 over the names, types, shapes and raw bytes of a part's tensors, streamed."""
        digest = hashlib.sha256()
        for entry in self.entries(part):
            stored = entry.stored
            digest.update(f"{entry.place.name}|{stored.dtype}|{stored.shape}|".encode())
            digest.update(stored.read().flatten().view(torch.uint8).numpy().data)
        return digest.digest()

    def finish_checks(self) -> None:
        """Wait for the checksums, where they are asked for; call it when all is loaded and before serving.

        Raises CheckpointError naming a file that differs from the manifest.
        """
        if self._check is not None:
            self._check.finish()


def open_checkpoint(directory: Path, *, verify_checksums: bool = False) -> Checkpoint:
    """Read the shape of the model, find every tensor and judge all headers. Raises CheckpointError.

    With `verify_checksums`, every file that is used must be listed in the manifest, and its SHA-256 is computed
    on a thread, whose end `Checkpoint.finish_checks` awaits.
    """
    layout = find_format(directory)
    weights = find_weights(directory, layout)
    check = ChecksumCheck(directory, _used_files(directory, weights)) if verify_checksums else None
    config = read_model_config(directory)
    stored = _read_headers(weights)
    config = _tied_as_stored(config, stored, layout)
    entries = _match(config, stored, weights=weights, layout=layout)
    _log.info(
        "checkpoint",
        extra={
            "directory": str(directory),
            "format": layout.value,
            "files": ", ".join(file.name for file in weights.files),
            "ignored_formats": ", ".join(
                other.value for other in CheckpointFormat if other != layout and other.is_in(directory)
            ),
        },
    )
    return Checkpoint(directory, config, entries, layout=layout, check=check)


def head_dim(config: ModelConfig, part: Part) -> int:
    """Width of an attention head in the decoder or the encoder."""
    if part is Part.VISION and isinstance(config, PixtralConfig):
        return config.vision.vision_head_dim
    return text_config(config).head_dim


def _used_files(directory: Path, weights: WeightFiles) -> set[str]:
    """Names of all files that decide what the model computes: weights, configs and tokenizers."""
    names = {file.name for file in weights.files}
    for pattern in ("*.json", "*.jinja", "tokenizer.model*", "*.model.v*"):
        names.update(path.name for path in directory.glob(pattern))
    return names - {MANIFEST_NAME}


def _read_headers(weights: WeightFiles) -> dict[str, StoredTensor]:
    """All tensors by their stored names. Raises CheckpointError where files and index disagree."""
    found: dict[str, StoredTensor] = {}
    for file in weights.files:
        for tensor in read_header(file):
            if tensor.name in found:
                other = found[tensor.name].file.name
                raise CheckpointError(f"{file.name}: tensor {shown(tensor.name)} is in {other} too")
            if weights.weight_map is not None and weights.weight_map.get(tensor.name) != file.name:
                raise CheckpointError(f"{file.name}: tensor {shown(tensor.name)} is left over by {weights.listing}")
            found[tensor.name] = tensor
    for name, file_name in (weights.weight_map or {}).items():
        if name not in found:
            raise CheckpointError(f"{file_name}: tensor {shown(name)} is missing, but {weights.listing} names it")
    return found


def _match(
    config: ModelConfig, stored: dict[str, StoredTensor], *, weights: WeightFiles, layout: CheckpointFormat
) -> list[Entry]:
    """Every tensor at its place, each of the right shape, and no other."""
    has_vision = isinstance(config, PixtralConfig)
    places: dict[tuple[Part, str], Entry] = {}
    for tensor in stored.values():
        where = place(tensor.name, layout=layout, has_vision=has_vision)
        if where is None or (where.part, where.name) in places:
            raise CheckpointError(f"{tensor.file.name}: tensor {shown(tensor.name)} is left over")
        places[where.part, where.name] = Entry(stored=tensor, place=where)
    matched = []
    for part, name, shape in tensor_shapes(config):
        entry = places.pop((part, name), None)
        if entry is None:
            missing = stored_name(part, name, layout=layout, has_vision=has_vision)
            raise CheckpointError(f"{weights.listing}: tensor {missing} is missing")
        if entry.stored.shape != shape:
            raise CheckpointError(
                f"{entry.stored.file.name}: tensor {entry.stored.name} has shape "
                f"{shown(list(entry.stored.shape))}, expected {list(shape)}"
            )
        matched.append(entry)
    for entry in places.values():
        raise CheckpointError(f"{entry.stored.file.name}: tensor {shown(entry.stored.name)} is left over")
    # A fixed order, so that a digest does not depend on how the tensors are spread over files.
    return sorted(matched, key=lambda entry: entry.place.name)


def _tied_as_stored(config: ModelConfig, stored: dict[str, StoredTensor], layout: CheckpointFormat) -> ModelConfig:
    """Embeddings are tied exactly when there is no head, whatever a default of the config says."""
    has_vision = isinstance(config, PixtralConfig)
    places = (place(name, layout=layout, has_vision=has_vision) for name in stored)
    has_head = any(where is not None and where.name == "lm_head.weight" for where in places)
    if isinstance(config, PixtralConfig):
        return dataclasses.replace(config, text=dataclasses.replace(config.text, tie_word_embeddings=not has_head))
    return dataclasses.replace(config, tie_word_embeddings=not has_head)
