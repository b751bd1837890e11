"""Muon: momentum whose matrices are made nearly orthogonal before they are applied.

Knows the update of two-dimensional weights. Does not know which weights get it. Source: Jordan et al.,
"Muon: an optimizer for hidden layers" (2024); the scale is Moonshot's (arXiv 2502.16982), so that AdamW's
learning rates and decay carry over.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """For hidden matrices only; matrices of one shape are orthogonalised together."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update from the gradients."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    tall = parameter.shape[0] > parameter.shape[1]
                    shapes[tuple(parameter.shape[::-1] if tall else parameter.shape)].append(parameter)
            for shape, parameters in shapes.items():
                scale = 0.2 * max(shape) ** 0.5
                updates = orthogonalised(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    turned = update.T if parameter.shape[0] > parameter.shape[1] else update
                    parameter.add_(turned.to(parameter.dtype), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum of the parameter, wide side last."""
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        ahead: Tensor = gradient.lerp(state["momentum"], momentum)
        return ahead.T if parameter.shape[0] > parameter.shape[1] else ahead


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [count, rows, columns], rows <= columns, with singular values drawn to about 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x
