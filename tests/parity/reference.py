"""Small models of every family, and what transformers makes of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from tests.pictures import noise
from tests.pictures import save as save_picture
from tests.tiny_models import Shape, image_tokens

BOUND = 1e-4


PATCH = 4


TEXT_SHAPES = [
    Shape(name="7b-v0.1-like", rope_theta=1e4, window=24, heads=8, kv_heads=2, head_dim=6),
    Shape(name="7b-v0.3-like", rope_theta=1e6, heads=8, kv_heads=2, head_dim=6),
    Shape(name="nemo-like", heads=8, kv_heads=2, head_dim=10),
    Shape(name="tied", tied=True, kv_heads=4),
    *(Shape(name=f"theta-1e{power}", rope_theta=10.0**power) for power in (5, 7, 8, 9)),
]


IMAGE_SHAPES = [
    Shape(name="12b-like", rope_theta=1e9, heads=8, kv_heads=2, head_dim=12, vision_head_dim=64),
    Shape(name="large-like", rope_theta=1e9, heads=12, kv_heads=1, vision_head_dim=88, projector_bias=False),
]


class Pictures(NamedTuple):
    """Pictures as files, as the reference's pixels and as prompt tokens."""

    files: list[bytes]
    inputs: dict[str, Tensor]
    token_ids: list[list[int]]


def pictures(sizes: Sequence[tuple[int, int]]) -> Pictures:
    """Pictures of these widths and heights for towers of 16 x 16 patches, as transformers prepares them."""
    images = [noise(*size, seed=seed) for seed, size in enumerate(sizes)]
    processor = PixtralImageProcessorPil(
        patch_size={"height": PATCH, "width": PATCH}, size={"longest_edge": 16 * PATCH}
    )
    inputs = {name: tensor.float() for name, tensor in processor(images, return_tensors="pt").items()}
    inputs["image_sizes"] = inputs["image_sizes"].long()
    tokens = [image_tokens(int(h) // PATCH, int(w) // PATCH) for h, w in inputs["image_sizes"]]
    return Pictures([save_picture(image) for image in images], inputs, tokens)


def random_ids(length: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 160, (length,), generator=generator).tolist()


def expected(model: PreTrainedModel, token_ids: Sequence[int], **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([token_ids]), **inputs).logits[0]
    return logits.float()
