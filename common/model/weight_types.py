"""What number types a model's weights are loaded as.

Knows torch's types. Does not know files, or who computes with them.
"""

from dataclasses import dataclass
from enum import Enum

import torch


class Matrices(Enum):
    """Type of a model's matrices, relative to the one type of its other tensors."""

    ALIKE = "of that type, too"
    STORED = "bfloat16 where they are stored so"
    ROUNDED = "bfloat16"


@dataclass(frozen=True, slots=True)
class WeightTypes:
    """The type that each tensor of a model is loaded as."""

    dtype: torch.dtype
    """Of all tensors but matrices, and of what passes between products."""
    matrices: Matrices = Matrices.ALIKE

    def of(self, stored: torch.dtype, num_dims: int) -> torch.dtype:
        """The type to load a tensor of `num_dims` dimensions as that is `stored` in this type."""
        stays = self.matrices is Matrices.STORED and stored is torch.bfloat16
        in_two_bytes = num_dims == 2 and (stays or self.matrices is Matrices.ROUNDED)
        return torch.bfloat16 if in_two_bytes else self.dtype
