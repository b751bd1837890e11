"""Pixels are those of mistral-common and of transformers, for every kind of picture that a file may hold."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
import pytest
from mistral_common.tokens.tokenizers.image import transform_image
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers.image_utils import load_image
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from common.image.preprocessing import PreprocessingMode
from common.native.resizing import find_kernels, open_resize
from tests.pictures import CLIP_MEAN, CLIP_STD, LIMITS, exif, noise, preprocessing, save
from vision_service.decoding.image import Pixels, decode_image

HF, MISTRAL = PreprocessingMode.HF, PreprocessingMode.MISTRAL
MODES = pytest.mark.parametrize("mode", [HF, MISTRAL], ids=lambda mode: str(mode.value))

RESIZE = open_resize(find_kernels())
"""What a service would use; `tests/common/native/test_resizing.py` holds that it makes no difference."""

BOUND = 1e-5
"""On normalised values, where a step of 8 bits is 0.0146: the references' floats, but for their last bits."""

SIZES = [(16, 16), (17, 33), (1, 40), (40, 1), (31, 1600), (500, 333), (1024, 1025), (1500, 999), (3000, 2018)]


class Kind(NamedTuple):
    """A picture file of one kind."""

    name: str
    data: bytes
    stored_mode: str
    """Pillow's mode of what lies in the file: shows that the file is of its kind."""


def kinds(width: int, height: int) -> list[Kind]:
    rgb, rgba = noise(width, height), noise(width, height, mode="RGBA")
    grey, palette = rgb.convert("L"), rgb.convert("P")
    return [
        Kind("RGB", save(rgb), "RGB"),
        Kind("RGB-jpeg", save(rgb, "JPEG"), "RGB"),
        Kind("RGB-webp", save(rgb, "WEBP"), "RGB"),
        Kind("RGBA", save(rgba), "RGBA"),
        Kind("RGBA-webp", save(rgba, "WEBP"), "RGBA"),
        Kind("LA", save(rgba.convert("LA")), "LA"),
        Kind("P", save(palette), "P"),
        Kind("P-one-transparent", save(palette, transparency=7), "P"),
        Kind("P-half-transparent", save(palette, transparency=bytes(range(256))), "P"),
        Kind("P-gif", save(palette, "GIF"), "P"),
        Kind("P-gif-transparent", save(palette, "GIF", transparency=7), "P"),
        Kind("one-bit", save(rgb.convert("1")), "1"),
        Kind("L", save(grey), "L"),
        Kind("L-jpeg", save(grey, "JPEG"), "L"),
        Kind("L-one-transparent", save(grey, transparency=77), "L"),
        Kind("CMYK", save(rgb.convert("CMYK"), "JPEG"), "CMYK"),
    ]


def decoded(data: bytes, mode: PreprocessingMode) -> Pixels:
    return decode_image(data, preprocessing=preprocessing(mode), limits=LIMITS, field="image", resize=RESIZE)


def ours(data: bytes, mode: PreprocessingMode) -> NDArray[np.float32]:
    """Normalised as the runner does it."""
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    normal: NDArray[np.float32] = (decoded(data, mode).astype(np.float32) / np.float32(255) - mean) / std
    return normal


def reference(picture: Image.Image, mode: PreprocessingMode) -> NDArray[np.float32]:
    """What the reference makes of a picture, normalised, [height, width, 3]."""
    if mode is HF:
        pixels = PixtralImageProcessorPil()(picture, return_tensors="np")["pixel_values"][0]
    else:
        grid = preprocessing(mode).patch_grid(*picture.size)
        pixels = transform_image(picture, (16 * grid.width, 16 * grid.height))
    return np.asarray(pixels).transpose(1, 2, 0)


def difference(data: bytes, mode: PreprocessingMode) -> float:
    with Image.open(BytesIO(data)) as picture:
        return float(np.abs(ours(data, mode) - reference(picture, mode)).max())


@MODES
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_reference_at_any_size(mode: PreprocessingMode, size: tuple[int, int]) -> None:
    assert difference(save(noise(*size)), mode) < BOUND


@MODES
@pytest.mark.parametrize("kind", kinds(150, 90), ids=lambda kind: kind.name)
def test_pixels_are_those_of_the_reference_for_every_kind_of_picture(mode: PreprocessingMode, kind: Kind) -> None:
    with Image.open(BytesIO(kind.data)) as picture:
        assert picture.mode == kind.stored_mode
    assert difference(kind.data, mode) < BOUND


@MODES
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_what_the_reference_makes_of_the_upright_one(
    mode: PreprocessingMode, orientation: int
) -> None:
    data = save(noise(200, 90), "JPEG", exif=exif(orientation))
    with Image.open(BytesIO(data)) as picture:
        turned = ImageOps.exif_transpose(picture)
        upright, stored = reference(turned, mode), reference(picture, mode)
        assert load_image(picture).tobytes() == turned.tobytes()
    np.testing.assert_allclose(ours(data, mode), upright, atol=BOUND)
    # The processors themselves leave a picture as it lies: transformers turns it where it loads the file.
    assert (stored.shape == upright.shape and np.allclose(stored, upright)) == (orientation == 1)


@MODES
@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_what_the_reference_sees(mode: PreprocessingMode, format: str) -> None:
    frames = [noise(90, 50, seed=seed) for seed in range(5)]
    data = save(frames[0], format, save_all=True, append_images=frames[1:])
    with Image.open(BytesIO(data)) as picture:
        assert picture.n_frames == 5  # type: ignore[attr-defined]
    assert difference(data, mode) < BOUND


@MODES
def test_sixteen_bit_grey_is_what_the_reference_makes_of_its_high_bytes(mode: PreprocessingMode) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (50, 90)).astype(np.uint16)
    data = save(Image.fromarray(values))
    expected = reference(Image.fromarray((values >> 8).astype(np.uint8)), mode)
    np.testing.assert_allclose(ours(data, mode), expected, atol=BOUND)
    # Given the file, both references cut at 255 and see white almost everywhere.
    with Image.open(BytesIO(data)) as picture:
        assert np.mean(reference(picture, mode) > 1.9) > 0.9


def test_the_transparent_colour_of_an_rgb_picture_is_white_as_transformers_has_it() -> None:
    picture = Image.new("RGB", (16, 16), (200, 100, 50))
    data = save(picture, transparency=(200, 100, 50))
    for mode in (HF, MISTRAL):
        assert (decoded(data, mode) == 255).all()
    assert difference(data, HF) < BOUND
    assert difference(data, MISTRAL) > 0.5  # mistral-common shows the colour.


def test_the_modes_differ_as_the_references_do() -> None:
    """The negative control: each mode misses the other's reference where a picture is resized."""
    picture = noise(2000, 1000)
    data = save(picture)
    for mode, other in ((HF, MISTRAL), (MISTRAL, HF)):
        assert np.abs(ours(data, mode) - reference(picture, other)).mean() > 0.3
    # Enlarging overshoots the 8-bit range, and mistral-common keeps that.
    edge = save(Image.fromarray(np.repeat(np.array([[0] * 20 + [255] * 20], np.uint8), 20, axis=0)).resize((40, 20)))
    assert decoded(edge, MISTRAL).min() < 0
    assert decoded(edge, MISTRAL).max() > 255
