"""Modules of torch whose products run in the kernels.

Knows where a module's linear layers are. Does not know what the module computes.
"""

from torch import Tensor, nn

from common.native.library import Library
from common.native.weights import PackedWeights


class PackedLinear(nn.Module):
    """A linear layer over packed weights."""

    def __init__(self, linear: nn.Linear, library: Library) -> None:
        """Take the layer's weights over."""
        super().__init__()
        self.bias = linear.bias
        self._weights = PackedWeights(library, [linear])

    def forward(self, x: Tensor) -> Tensor:
        """Map x [num_rows, in_features] to [num_rows, out_features]."""
        y = self._weights(x)
        return y if self.bias is None else y + self.bias


def pack_linears(module: nn.Module, library: Library) -> None:
    """Put a PackedLinear in the place of every linear layer below the module, whose weights so have one copy."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, library))
        else:
            pack_linears(child, library)
