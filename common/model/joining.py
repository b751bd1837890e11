"""Makes one weight of several that are multiplied with the same rows.

Knows modules and their parameters. Does not know what they are of.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def join_parameters(modules: Sequence[nn.Module], name: str) -> Tensor:
    """Parameters of one name, one below another. Each becomes a view of them all: nothing is there twice."""
    parts = [module.get_parameter(name).detach() for module in modules]
    if len(parts) == 1:
        return parts[0]
    # Joined as bytes: not every device concatenates 8-bit floats.
    joined = torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
    for module, part in zip(modules, joined.split([len(part) for part in parts]), strict=True):
        setattr(module, name, nn.Parameter(part, requires_grad=False))
    return joined
