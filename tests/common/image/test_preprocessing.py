"""Patch grids are those of mistral-common and of transformers, whatever the size."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)

from common.image.preprocessing import PreprocessingMode
from tests.pictures import noise, preprocessing

HF, MISTRAL = PreprocessingMode.HF, PreprocessingMode.MISTRAL
SMALL = [(width, height) for width in range(1, 71) for height in range(1, 71)]
EXTREME = [(4, 10_000), (1, 4096), (3, 8000), (1, 5000), (1, 10_000), (1024, 1025), (15, 17), (3000, 2018), (1, 1)]


def mistral_grid(width: int, height: int, *, image_size: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns by mistral-common."""
    config = ImageConfig(image_patch_size=patch_size, max_image_size=image_size)
    encoder = ImageEncoder(config, SpecialImageIDs(img=10, img_break=12, img_end=13))
    columns, rows = encoder._image_to_num_tokens(SimpleNamespace(size=(width, height)))  # type: ignore[arg-type]
    return rows, columns


def hf_grid(width: int, height: int, *, image_size: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns by transformers; 0 where it rounds a side down to nothing, which it then refuses."""
    picture = np.broadcast_to(np.uint8(0), (3, height, width))
    sides = get_resize_output_image_size(picture, image_size, patch_size, "channels_first")
    return sides[0] // patch_size, sides[1] // patch_size


def clamped(grid: tuple[int, int]) -> tuple[int, int]:
    return max(grid[0], 1), max(grid[1], 1)


def random_sizes(count: int) -> Iterator[tuple[int, int]]:
    """Sides up to 8000: half spread evenly, half over orders of magnitude, most of which are far from square."""
    generator = np.random.default_rng(0)
    even = generator.uniform(1, 8001, (count // 2, 2))
    far_from_square = np.exp(generator.uniform(0, np.log(8001), (count // 2, 2)))
    for width, height in np.concatenate((even, far_from_square)):
        yield int(width), int(height)


def half_way_sizes() -> Iterator[tuple[int, int]]:
    """Sizes whose shorter side shrinks to n + 1/2 pixels, where rounding half to even tells."""
    for odd in range(1, 2048, 2):
        yield 2048, odd
        yield odd, 2048


@pytest.mark.parametrize(("image_size", "patch_size"), [(1024, 16), (64, 16), (32, 8), (56, 14)])
def test_grids_of_all_small_sizes_are_those_of_the_references(image_size: int, patch_size: int) -> None:
    ours = {mode: preprocessing(mode, image_size=image_size, patch_size=patch_size) for mode in (HF, MISTRAL)}
    for size in SMALL:
        shape = {"image_size": image_size, "patch_size": patch_size}
        assert ours[MISTRAL].patch_grid(*size) == mistral_grid(*size, **shape), size
        assert ours[HF].patch_grid(*size) == clamped(hf_grid(*size, **shape)), size


def test_grids_of_random_half_way_and_extreme_sizes_are_those_of_the_references() -> None:
    hf, mistral = preprocessing(HF), preprocessing(MISTRAL)
    turned = [(height, width) for width, height in EXTREME]
    for size in [*random_sizes(8000), *half_way_sizes(), *EXTREME, *turned]:
        assert mistral.patch_grid(*size) == mistral_grid(*size, image_size=1024, patch_size=16), size
        assert hf.patch_grid(*size) == clamped(hf_grid(*size, image_size=1024, patch_size=16)), size
        assert max(hf.patch_grid(*size)) <= 64, size


def test_the_modes_differ_as_the_references_do() -> None:
    """The negative control: had both modes one rule, one of them would miss its reference for some sizes."""
    hf, mistral = preprocessing(HF), preprocessing(MISTRAL)
    differing = [size for size in random_sizes(8000) if hf.patch_grid(*size) != mistral.patch_grid(*size)]
    assert 100 < len(differing) < 400
    assert mistral.patch_grid(3000, 2018) == (44, 64)
    assert hf.patch_grid(3000, 2018) == (43, 64)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 8000), (8000, 3)])
def test_sizes_that_transformers_refuses_have_a_grid_one_patch_wide(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        PixtralImageProcessorPil()(noise(*size), return_tensors="np")
    assert min(preprocessing(HF).patch_grid(*size)) == 1
    assert preprocessing(HF).patch_grid(*size) == preprocessing(MISTRAL).patch_grid(*size)
