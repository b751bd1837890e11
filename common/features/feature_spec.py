"""What the features of one image must be: both services work it out by themselves.

Knows sizes. Does not know bytes on the wire, tensors or models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid


@dataclass(frozen=True, slots=True)
class ValueType:
    """How values lie in bytes, the lowest first."""

    size: int
    exponent: int
    """Bits that are all ones exactly in infinities and NaNs."""


VALUE_TYPES: Mapping[str, ValueType] = MappingProxyType(
    {
        "float32": ValueType(4, 0x7F800000),
        "bfloat16": ValueType(2, 0x7F80),
        "float16": ValueType(2, 0x7C00),
    }
)
"""Every type that may be on the wire."""


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
        return self.grid.num_patches * self.width * VALUE_TYPES[self.dtype].size
