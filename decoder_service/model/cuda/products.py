"""The products of a layer as the CUDA path computes them: several weights joined to one, in their own type or in FP8.

Knows weights and their scales. Does not know layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.model.joining import join_parameters
from decoder_service.model.cuda.fused import round_rows, scale_sums
from decoder_service.model.fp8 import FEW_ROWS, Fp8Linear, multiply_scaled, multiply_unscaled

Product = Callable[[Tensor], Tensor]
"""Maps [num_rows, in_features] to [num_rows, out_features]."""


@dataclass(frozen=True, slots=True)
class PlainProduct:
    """A product in the weight's own type."""

    weight: Tensor
    """[out_features, in_features]"""

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        return functional.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class Fp8Product:
    """A product in 8-bit floats; the input is rounded by one kernel, and sums of few rows are scaled by another."""

    weight: Tensor
    """FP8 [out_features, in_features]"""
    scale: Tensor
    """fp32 [out_features, 1]"""
    one: Tensor
    """fp32 [1], made once as each making is a launch"""

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        rows, row_scale = round_rows(x)
        if len(rows) > FEW_ROWS:
            return multiply_scaled(rows, row_scale, self.weight, self.scale, dtype=x.dtype)
        return scale_sums(multiply_unscaled(rows, self.weight, self.one), row_scale, self.scale, dtype=x.dtype)


def join(*modules: nn.Module) -> Product:
    """One product that gives the outputs of all. Their own weights become views of the joined one: nothing is twice."""
    weight = join_parameters(modules, "weight")
    if isinstance(modules[0], Fp8Linear):
        return Fp8Product(weight, join_parameters(modules, "scale"), torch.ones(1, device=weight.device))
    return PlainProduct(weight)
