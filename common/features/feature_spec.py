"""What the features of one image must be: both services work it out by themselves.

Knows sizes. Does not know bytes on the wire, tensors or models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid

DTYPE_SIZES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
"""Bytes of a value of every type that may be on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """What the features of one image must be."""

    image_hash: ImageHash
    grid: PatchGrid
    width: int
    """Values in a row."""
    dtype: str
    """"float32", "bfloat16" or "float16"; little-endian."""

    @property
    def num_bytes(self) -> int:
        """Size of the row-major matrix [grid.num_patches, width]."""
        return self.grid.num_patches * self.width * DTYPE_SIZES[self.dtype]
