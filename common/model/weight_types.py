"""What number types a model's weights are loaded as.

Knows torch's types. Does not know files, or who computes with them.
"""

from dataclasses import dataclass
from enum import Enum

import torch


class Matrices(Enum):
    """What a model's matrices are loaded as, where its other tensors are of one type."""

    ALIKE = "of that type, too"
    STORED = "bfloat16 where they are stored so"
    ROUNDED = "bfloat16"


@dataclass(frozen=True, slots=True)
class WeightTypes:
    """Of every tensor of a model."""

    dtype: torch.dtype
    """Of all but matrices, and of what passes between products."""
    matrices: Matrices = Matrices.ALIKE

    def of(self, stored: torch.dtype, num_dims: int) -> torch.dtype:
        """Of a tensor of so many dimensions that is `stored` in a type."""
        stays = self.matrices is Matrices.STORED and stored is torch.bfloat16
        in_two_bytes = num_dims == 2 and (stays or self.matrices is Matrices.ROUNDED)
        return torch.bfloat16 if in_two_bytes else self.dtype
