"""Reads one safetensors file: its header strictly, its tensors one at a time.

Knows the bytes of the format. Does not know which tensors there should be. Tensors are read and not mapped: a
mapped file that shrinks kills the process, and its pages would count as the service's memory.

    8 bytes          n, the length of the header, little-endian
    n bytes          JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
    the rest         the tensors, without gaps and without overlaps
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from common.checkpoint.files import CheckpointError, one_line

MAX_HEADER_BYTES = 100_000_000
"""As the format's own library has it."""
DTYPES: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Types of weights. Whole numbers and 8 bits stand for quantised weights, which mean something else."""
_MAX_RANK = 8


class StoredTensor(NamedTuple):
    """A tensor as a header describes it."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The values, in memory of their own. Raises CheckpointError."""
        data = torch.empty(self.num_bytes, dtype=torch.uint8)
        self.read_into(data.numpy().data)
        return data.view(self.dtype).view(self.shape)

    def read_into(self, view: memoryview, offset: int = 0) -> None:
        """Fill memory with the values' bytes from `offset` on. Raises CheckpointError."""
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start + offset)
                while view and (count := file.readinto(view)):
                    view = view[count:]
        except OSError as error:
            raise CheckpointError(f"{self.file.name}: tensor {self.name}: {one_line(error)}") from error
        if view:
            raise CheckpointError(f"{self.file.name}: tensor {self.name}: the file ends too early")


def read_header(path: Path) -> list[StoredTensor]:
    """Every tensor of a file. Raises CheckpointError unless the header describes the file exactly."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header, start = _header(file, size)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: cannot be read: {one_line(error)}") from error
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__":
            try:
                tensors.append(_tensor(path, name, entry, start))
            except ValueError as error:
                raise CheckpointError(f"{path.name}: tensor {shown(name)}: {error}") from None
    _check_spans(tensors, start=start, size=size)
    return tensors


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors start."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ValueError("the file ends inside the length of its header")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"the header claims {length} bytes, the file has {size}")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("the header names something twice")
    return content


def _tensor(path: Path, name: str, entry: object, start: int) -> StoredTensor:
    """One entry of the header. Raises ValueError saying what is wrong with it."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("its entry must have dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"type {shown(dtype)} is not supported; expected one of {', '.join(DTYPES)}")
    shape, offsets = _naturals(entry["shape"]), _naturals(entry["data_offsets"])
    if shape is None or len(shape) > _MAX_RANK:
        raise ValueError(f"{shown(entry['shape'])} is not a shape")
    if offsets is None or len(offsets) != 2:
        raise ValueError(f"{shown(entry['data_offsets'])} are not two offsets")
    tensor = StoredTensor(path, name, DTYPES[dtype], shape, start + offsets[0])
    if tensor.num_bytes != offsets[1] - offsets[0]:
        raise ValueError(f"its shape {shown(shape)} and type {dtype} do not make the bytes between {shown(offsets)}")
    return tensor


def _naturals(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers from 0 on; None for anything else. True is none of them, though Python has it as 1."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return None
    return tuple(value)


def _check_spans(tensors: list[StoredTensor], *, start: int, size: int) -> None:
    """Raise unless the tensors lie one behind the other, up to the end of the file."""
    end, name = start, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.num_bytes)):
        if tensor.start != end:
            how = "overlaps the one before it" if tensor.start < end else "leaves a gap before it"
            raise CheckpointError(f"{tensor.file.name}: tensor {shown(tensor.name)} {how}")
        end, name = end + tensor.num_bytes, tensor.name
        if end > size:
            raise CheckpointError(f"{tensor.file.name}: tensor {shown(name)} reaches beyond the end of the file")
    if tensors and end != size:
        raise CheckpointError(f"{tensors[0].file.name}: {size - end} bytes after tensor {shown(name)}, the last")


def shown(value: object) -> str:
    """What a file says, in one line that a message can hold."""
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else text[:100] + "..."
