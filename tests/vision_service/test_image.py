"""Pixels are those of the references, upright, and whatever is no picture is refused with a fixed text."""

import warnings
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
import torch
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)

from common.errors import InvalidArgumentError
from common.image_header import ImageLimits
from common.preprocessing import PreprocessingMode
from tests.pictures import CLIP_MEAN, CLIP_STD, LIMITS, exif, noise, preprocessing, save
from vision_service.image import Pixels, decode_image

HF, MISTRAL = PreprocessingMode.HF, PreprocessingMode.MISTRAL
SIZES = [(16, 16), (17, 33), (1, 40), (40, 1), (500, 333), (1024, 1025), (1500, 999), (3000, 2018), (31, 1600)]


def decode(data: bytes, mode: PreprocessingMode = HF, limits: ImageLimits = LIMITS) -> Pixels:
    return decode_image(data, preprocessing=preprocessing(mode), limits=limits, field="image")


def normalised(pixels: Pixels) -> NDArray[np.float32]:
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    normal: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return normal


def refusal(data: bytes, mode: PreprocessingMode = HF, limits: ImageLimits = LIMITS) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(data, mode, limits)
    assert "0x" not in caught.value.message
    assert caught.value.__cause__ is None
    return caught.value


@pytest.fixture(scope="module")
def hf_processor() -> PixtralImageProcessorPil:
    return PixtralImageProcessorPil()


@pytest.mark.parametrize("size", SIZES)
def test_hf_pixels_are_those_of_transformers(size: tuple[int, int], hf_processor: PixtralImageProcessorPil) -> None:
    picture = noise(*size)
    expected = hf_processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    pixels = decode(save(picture))
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(normalised(pixels), expected, atol=1e-5)


def mistral_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns by mistral-common, whose pixels need OpenCV but whose sizes do not."""
    config = ImageConfig(16, 1024)
    encoder = ImageEncoder.__new__(ImageEncoder)
    encoder.image_config = config
    encoder.special_ids = SpecialImageIDs(img=10, img_break=12, img_end=13)
    columns, rows = encoder._image_to_num_tokens(ImageChunk(image=Image.new("RGB", (width, height))).image)
    return rows, columns


@pytest.mark.parametrize("size", SIZES)
def test_mistral_pixels_are_cubic_on_the_grid_of_mistral_common(size: tuple[int, int]) -> None:
    picture = noise(*size)
    rows, columns = mistral_grid(*size)
    planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    expected = functional.interpolate(planes, size=(16 * rows, 16 * columns), mode="bicubic", align_corners=False)
    pixels = decode(save(picture), MISTRAL)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected[0].permute(1, 2, 0).numpy(), atol=0.03)


def test_grids_are_those_of_the_references_for_all_small_sizes() -> None:
    for width in range(1, 71, 3):
        for height in range(1, 71):
            array = np.empty((3, height, width), np.uint8)
            rows, columns = get_resize_output_image_size(array, (64, 64), (16, 16), "channels_first")
            grid = preprocessing(HF, image_size=64).patch_grid(width, height)
            # A side that transformers rounds down to nothing, which it then refuses, is one patch here.
            assert grid == (max(rows // 16, 1), max(columns // 16, 1))
    for width, height in [*SIZES, (4, 10_000), (1, 4096), (3, 8000), (8000, 3), (10_000, 4)]:
        assert preprocessing(MISTRAL).patch_grid(width, height) == mistral_grid(width, height)


@pytest.mark.parametrize("mode", [HF, MISTRAL])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_pictures_stand_upright_for_every_orientation(mode: PreprocessingMode, orientation: int, format: str) -> None:
    data = save(noise(32, 48), format, exif=exif(orientation))
    with Image.open(BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(decode(data, mode), np.asarray(upright))


COLOURS = {
    "RGB": noise(16, 16),
    "L": noise(16, 16, mode="L"),
    "1": noise(16, 16, mode="1"),
    "P": noise(16, 16, mode="P"),
}


@pytest.mark.parametrize("mode", COLOURS)
def test_pictures_without_alpha_become_rgb_as_pillow_does_it(mode: str) -> None:
    np.testing.assert_array_equal(decode(save(COLOURS[mode])), np.asarray(COLOURS[mode].convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_what_is_transparent_is_white(format: str) -> None:
    hidden = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (decode(save(hidden, format, lossless=True)) == 255).all()
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    assert decode(save(half, format, lossless=True))[0, 0].tolist() == [255, 127, 127]


def test_alpha_is_laid_over_white_as_transformers_does_it(hf_processor: PixtralImageProcessorPil) -> None:
    for picture in (noise(16, 16, mode="RGBA"), noise(16, 16, mode="RGBA").convert("LA")):
        expected = hf_processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        difference = np.abs(normalised(decode(save(picture))) - expected)
        assert difference.max() < 0.03  # Two steps of 8 bits: the references differ among themselves.


def test_a_transparent_palette_entry_is_white() -> None:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([9, 9, 9, 200, 100, 50])
    for format in ("PNG", "GIF"):
        assert (decode(save(picture, format, transparency=1)) == 255).all()
        assert decode(save(picture, format, transparency=0))[0, 0].tolist() == [200, 100, 50]


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = decode(save(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_cmyk_is_read_as_pillow_reads_it() -> None:
    data = save(noise(32, 32).convert("CMYK"), "JPEG")
    with Image.open(BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_only_the_first_frame_is_decoded(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), (0, 0, shade)) for shade in range(0, 200, 4)]
    data = save(frames[0], format, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(data), 0, atol=4)


def test_a_palette_and_not_its_indices_makes_the_picture() -> None:
    red, blue = Image.new("P", (16, 16), 0), Image.new("P", (16, 16), 0)
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert decode(save(red))[0, 0].tolist() == [255, 0, 0]
    assert decode(save(blue))[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_cut_anywhere_is_refused_or_read(format: str) -> None:
    data = save(noise(20, 12), format)
    refused = 0
    for length in range(len(data)):
        refused += 1
        with suppress(InvalidArgumentError):
            assert decode(data[:length]).shape == (16, 32, 3)
            refused -= 1
    assert refused > 0.8 * len(data)
    assert refusal(data[: len(data) // 2]).reason == "IMAGE_UNDECODABLE"


def test_pixels_that_contradict_their_header_are_refused() -> None:
    data = bytearray(save(Image.new("RGB", (16, 16)), "GIF"))
    data[6:10] = b"\x08\0\x08\0"  # The frame is now larger than its canvas, and Pillow enlarges that.
    assert refusal(bytes(data)).reason == "IMAGE_UNDECODABLE"


def test_a_header_that_lies_about_its_data_is_refused() -> None:
    data = bytearray(save(Image.new("L", (16, 16))))
    data[16:24] = (5000).to_bytes(4, "big") * 2
    assert refusal(bytes(data)).reason == "IMAGE_UNDECODABLE"


def test_limits_hold_before_pixels_are_decoded() -> None:
    data = save(Image.new("1", (3000, 3000)))
    assert refusal(data, limits=ImageLimits(max_bytes=10**6, max_pixels=10**6)).reason == "IMAGE_TOO_LARGE"


def test_a_broken_colour_profile_is_ignored() -> None:
    data = save(noise(16, 16), icc_profile=b"no profile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(decode(data), np.asarray(noise(16, 16)))
