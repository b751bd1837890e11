"""Prompts with pictures, and small models of several shapes for them."""

import torch
from torch import Tensor

from tests.tiny_models import (
    Prompt,
    Shape,
    image_tokens,
)

IMAGE_SHAPES = [
    Shape(name="pixtral-like", rope_theta=1e9, heads=8, kv_heads=2, head_dim=12),
    Shape(name="large-like", vision_head_dim=20, vision_heads=3, projector_bias=False, patch=2),
]


def mixed_prompts(patch: int) -> list[Prompt]:
    """Text, one image, images between texts, four images of odd grids, an image at the very start."""

    def pictures(*grids: tuple[int, int]) -> list[Tensor]:
        return [_picture(*grid, patch, seed) for seed, grid in enumerate(grids)]

    text = random_ids(9, seed=3)
    return [
        Prompt(token_ids=text),
        Prompt(token_ids=[1, 3, *image_tokens(3, 5), *text, 4], images=pictures((3, 5))),
        Prompt(
            token_ids=[1, *text, *image_tokens(1, 1), 50, *image_tokens(7, 2), *text],
            images=pictures((1, 1), (7, 2)),
        ),
        Prompt(
            token_ids=[1, *(id_ for grid in ((2, 3), (3, 2), (1, 6), (5, 5)) for id_ in image_tokens(*grid)), *text],
            images=pictures((2, 3), (3, 2), (1, 6), (5, 5)),
        ),
        Prompt(token_ids=[*image_tokens(4, 4), 60], images=pictures((4, 4))),
    ]


def _picture(height: int, width: int, patch: int, seed: int) -> Tensor:
    return torch.randn(3, height * patch, width * patch, generator=torch.Generator().manual_seed(seed))


def random_ids(length: int, *, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 160, (length,), generator=generator).tolist()
