"""Which files of a directory make up a checkpoint.

Knows names of files, indexes and JSON. Does not know what is in the weights (see `safetensors_file`) or what a
config means (see `common/checkpoint/config.py`).
"""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

_MAX_JSON_BYTES = 64 << 20
"""Far over every config and index; a larger file is none."""


class CheckpointError(ValueError):
    """A checkpoint cannot be served; the message is one line that names the file."""


class CheckpointFormat(Enum):
    """Who wrote the directory."""

    HF = "hf"
    """config.json and model*.safetensors, as transformers writes them."""
    NATIVE = "native"
    """params.json and consolidated*.safetensors, as Mistral writes them."""

    @property
    def config_name(self) -> str:
        """File that states the shape of the model."""
        return "config.json" if self is CheckpointFormat.HF else "params.json"

    @property
    def weights_name(self) -> str:
        """File that holds all tensors, where one does."""
        return "model.safetensors" if self is CheckpointFormat.HF else "consolidated.safetensors"

    @property
    def index_name(self) -> str:
        """File that says which of several files holds which tensor."""
        return f"{self.weights_name}.index.json"

    def is_in(self, directory: Path) -> bool:
        """Whether the directory holds a config and weights of this format."""
        stem = self.weights_name.removesuffix(".safetensors")
        weights = any(directory.glob(f"{stem}*.safetensors")) or (directory / self.index_name).is_file()
        return weights and (directory / self.config_name).is_file()


class WeightFiles(NamedTuple):
    """The files that hold the tensors."""

    files: tuple[Path, ...]
    weight_map: Mapping[str, str] | None
    """File name by tensor name, where an index says so."""
    listing: str
    """Name of the file to blame where a tensor is nowhere."""


def find_format(directory: Path) -> CheckpointFormat:
    """Tell the format by its files; a directory that holds both is read as Hugging Face's.

    Raises CheckpointError where there is neither.
    """
    for layout in (CheckpointFormat.HF, CheckpointFormat.NATIVE):
        if layout.is_in(directory):
            return layout
    raise CheckpointError(
        f"{directory}: no checkpoint here; expected config.json with model*.safetensors, "
        "or params.json with consolidated*.safetensors"
    )


def find_weights(directory: Path, layout: CheckpointFormat) -> WeightFiles:
    """The file that holds everything, else those that the index names; other files do not count.

    Raises CheckpointError for a missing file or index.
    """
    single, index = directory / layout.weights_name, directory / layout.index_name
    if single.is_file():
        return WeightFiles((single,), None, single.name)
    if index.is_file():
        weight_map = _read_weight_map(index)
        files = tuple(directory / name for name in sorted(set(weight_map.values())))
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file.name}: {index.name} names this file, but it is missing")
        return WeightFiles(files, weight_map, index.name)
    if layout is CheckpointFormat.HF:
        # Without it nobody can tell whether a file is missing.
        raise CheckpointError(f"{index.name}: missing, and there is no {single.name}")
    files = tuple(sorted(directory.glob("consolidated*.safetensors")))
    return WeightFiles(files, None, files[0].name)


def read_json(path: Path, *, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """Content of a JSON file that holds an object; raises CheckpointError naming the file."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CheckpointError(f"{path.name}: larger than {max_bytes} bytes")
        content = json.loads(data.decode("utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name}: expected a JSON object")
    return content


def one_line(error: Exception) -> str:
    """What an error says, short enough for a line."""
    # Of a file's error the reason alone, as whoever asks names the file.
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(said.split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _read_weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name}: weight_map must be an object that is not empty")
    for tensor, name in weight_map.items():
        # A plain name, so that an index reaches nothing outside of its directory.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index.name}: tensor {tensor[:100]!r}: {str(name)[:100]!r} is no file name")
    return weight_map
