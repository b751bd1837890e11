"""What number types a model's weights are loaded as.

Knows torch's types. Does not know files, or who computes with them.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


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

    def of(self, stored: Tensor) -> torch.dtype:
        """Of a tensor that is `stored` so."""
        stays = self.matrices is Matrices.STORED and stored.dtype is torch.bfloat16
        in_two_bytes = stored.ndim == 2 and (stays or self.matrices is Matrices.ROUNDED)
        return torch.bfloat16 if in_two_bytes else self.dtype
