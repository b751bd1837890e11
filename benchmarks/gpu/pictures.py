"""Packs of random pictures for encoders, as pixels and as the patches that ours takes.

Knows shapes. Does not know encoders.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PACKS: dict[str, list[tuple[int, int]]] = {
    "256 px x 16": [(16, 16)] * 16,
    "512 px x 4": [(32, 32)] * 4,
    "640 px x 2": [(40, 40)] * 2,
    "1024 px": [(64, 64)],
    "16 of mixed sizes": [(8 + 3 * index % 40, 10 + 7 * index % 50) for index in range(16)],
}
"""Patch grids (height, width)"""


def random_pixels(
    grids: Sequence[tuple[int, int]], patch_size: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Normalised pixels [3, height, width] of a picture for each grid."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, height * patch_size, width * patch_size) for height, width in grids]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def patches_of(pixels: Sequence[Tensor], patch_size: int) -> Tensor:
    """Patches [num_patches, 3 * patch_size ** 2] of the pictures, one behind another, in raster order."""
    return torch.cat([_patches(each, patch_size) for each in pixels])


def _patches(pixels: Tensor, patch_size: int) -> Tensor:
    grid = pixels.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size))
    patches: Tensor = grid.permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1)
    return patches
