"""Writes one safetensors file, tensor by tensor.

Knows the bytes of the format (see `safetensors_file`). Does not know what the tensors are. The header is made
from types and shapes alone, so that never more than one tensor is in memory.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from common.checkpoint.safetensors_file import DTYPES


class Planned(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    """Gives the values when their turn has come."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it will take in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Iterable[Planned]) -> None:
    """Write the file; it has its name only when it is whole."""
    # Wide types first, as the format's own library has it: every tensor then starts at a multiple of its type.
    planned = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        write_header(file, planned)
        for tensor in planned:
            values = tensor.make()
            if (values.dtype, tuple(values.shape)) != (tensor.dtype, tensor.shape):
                raise ValueError(f"tensor {tensor.name} is not of the type and shape that were planned")
            file.write(values.contiguous().flatten().view(torch.uint8).numpy().data)
    aside.replace(path)


def write_header(file: BinaryIO, planned: list[Planned]) -> int:
    """Write what stands before the tensors, in their order; returns the size of the whole file in bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    entries |= dict(_entries(planned))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    return 8 + len(text) + sum(tensor.num_bytes for tensor in planned)


def _entries(planned: list[Planned]) -> Iterator[tuple[str, object]]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    end = 0
    for tensor in planned:
        start, end = end, end + tensor.num_bytes
        yield tensor.name, {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
