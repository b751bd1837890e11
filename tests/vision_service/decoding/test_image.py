"""Pictures are upright and opaque, and whatever is no picture is refused with a fixed text."""

import subprocess
import sys
import warnings
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from common.errors import InvalidArgumentError
from common.image.header import ImageLimits
from common.image.preprocessing import PreprocessingMode
from common.image.resizing import resize_plainly
from tests.pictures import LIMITS, exif, noise, preprocessing, save
from vision_service.decoding.image import Pixels, decode_image

HF, MISTRAL = PreprocessingMode.HF, PreprocessingMode.MISTRAL


def decode(data: bytes, mode: PreprocessingMode = HF, limits: ImageLimits = LIMITS) -> Pixels:
    return decode_image(data, preprocessing=preprocessing(mode), limits=limits, field="image")


def refusal(data: bytes, mode: PreprocessingMode = HF, limits: ImageLimits = LIMITS) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        decode(data, mode, limits)
    assert "0x" not in caught.value.message
    assert caught.value.__cause__ is None
    return caught.value


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


def test_the_given_function_resizes_the_upright_opaque_picture_under_mode_hf_alone() -> None:
    asked: list[tuple[str, tuple[int, int], int, int]] = []

    def resize(picture: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
        asked.append((picture.mode, picture.size, width, height))
        return resize_plainly(picture, width, height)

    data = save(noise(20, 40, mode="RGBA"), exif=exif(6))
    for mode in (HF, MISTRAL):
        pixels = decode_image(data, preprocessing=preprocessing(mode), limits=LIMITS, field="", resize=resize)
        np.testing.assert_array_equal(pixels, decode(data, mode))
    assert asked == [("RGB", (40, 20), 48, 32)]


def test_pictures_are_held_in_one_piece_where_that_is_asked_for() -> None:
    code = """
from PIL import Image
from common.native.pixel_memory import find_pixels
from vision_service.decoding.image import keep_pixel_memory
for limit, size in ((50_000_000, (8000, 6250)), (35, (5, 7)), (10**10, (3000, 3000))):
    keep_pixel_memory(limit, whole=True)
    assert find_pixels(Image.new("RGB", size)) is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own words


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("other", ["PDF", "TIFF", "BMP", "PNG"])
def test_a_file_of_two_formats_is_what_its_first_bytes_say_and_nothing_else(format: str, other: str) -> None:
    picture, guest = save(noise(32, 48), format), save(noise(16, 16, seed=1), other)
    np.testing.assert_array_equal(decode(picture + guest), decode(picture))
    assert refusal(picture[:12] + guest).reason == "IMAGE_UNDECODABLE"
