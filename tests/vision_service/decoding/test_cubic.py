"""Cubic resizing is OpenCV's."""

import cv2
import numpy as np
import pytest

from vision_service.decoding.cubic import resize_cubic


@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((37, 91), (48, 96)),
        ((500, 333), (512, 336)),
        ((1080, 1920), (576, 1024)),
        ((2018, 3000), (704, 1024)),
        ((1, 5000), (16, 1024)),
        ((5000, 1), (1024, 16)),
        ((8000, 3), (1024, 16)),
        ((1, 1), (16, 16)),
        ((2, 3), (16, 16)),
    ],
)
def test_resizing_is_what_opencv_does(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized = resize_cubic(pixels, width=new_size[1], height=new_size[0])
    expected = cv2.resize(pixels.astype(np.float32), new_size[::-1], interpolation=cv2.INTER_CUBIC)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=2e-4)


def test_the_same_size_gives_the_same_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_cubic(pixels, width=48, height=32), pixels)


def test_values_beyond_the_scale_are_kept() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    resized = resize_cubic(pixels, width=16, height=16)
    assert resized.min() < -1
    assert resized.max() > 256


def test_a_picture_of_one_row_needs_no_memory_for_many() -> None:
    # Rows first, this would be an array of 4096 x 4,000,000 pixels in between.
    resized = resize_cubic(np.zeros((1, 4_000_000, 3), np.uint8), width=16, height=4096)
    assert resized.shape == (4096, 16, 3)
