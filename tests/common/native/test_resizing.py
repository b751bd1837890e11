"""Resizing by the kernels gives Pillow's own bytes, and what they are not for is left to Pillow."""

from ctypes import string_at
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.image.resizing import resize_plainly
from common.model.settings import ComputeChoice
from common.native import bicubic, resizing
from common.native.bicubic import Windows, is_down_first, windows
from common.native.build import default_cache, find_or_build
from common.native.pixel_memory import find_pixels
from common.native.processor import cpu_levels
from common.native.resizing import NativeResize, find_kernels, open_resize
from tests.pictures import noise


@pytest.fixture(scope="module", params=["x86-64-v3", "x86-64-v4"])
def resize(request: pytest.FixtureRequest) -> NativeResize:
    """For every kind of processor that this machine can stand in for."""
    levels = cpu_levels()
    level = request.param if request.param in levels else levels[-1]
    return NativeResize(find_or_build(default_cache(), level))


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels get no help."""

    def refuse(picture: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
        raise AssertionError(f"{picture.size} to {width} x {height} was left to Pillow")

    monkeypatch.setattr(resizing, "resize_plainly", refuse)


def extremes(width: int, height: int, *, seed: int) -> Image.Image:
    """Black and white, alone or in squares: what overshoots on both ends of the scale."""
    generator = np.random.default_rng(seed)
    side = int(generator.integers(1, 7))
    rows, columns = -(-height // side), -(-width // side)
    squares = generator.integers(0, 2, (rows, columns, 3), dtype=np.uint8) * 255
    return Image.fromarray(squares.repeat(side, axis=0).repeat(side, axis=1)[:height, :width].copy())


def differing(resize: NativeResize, picture: Image.Image, width: int, height: int) -> int:
    """Bytes that are not Pillow's."""
    ours, pillows = resize(picture, width, height), resize_plainly(picture, width, height)
    assert ours.shape == pillows.shape == (height, width, 3)
    return int(np.count_nonzero(ours != pillows))


SIZES = [
    ((16, 16), (16, 16)),
    ((40, 24), (40, 48)),  # only down
    ((40, 24), (80, 24)),  # only across
    ((1500, 1000), (1024, 688)),
    ((17, 5000), (16, 1024)),
    ((5000, 17), (1024, 16)),
    ((16, 65536), (16, 1024)),
    ((65536, 16), (1024, 16)),
    ((300, 200), (16, 16)),
    ((16, 16), (512, 1024)),
    ((100, 900), (80, 300)),  # columns first
    ((1031, 517), (1024, 528)),  # across to fewer, down to more
]


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_bytes_are_pillows_whatever_the_sizes(resize: NativeResize, old: tuple[int, int], new: tuple[int, int]) -> None:
    assert differing(resize, noise(*old), *new) == 0
    assert differing(resize, extremes(*old, seed=1), *new) == 0


@pytest.mark.usefixtures("no_pillow")
def test_bytes_are_pillows_for_random_sizes(resize: NativeResize) -> None:
    generator = np.random.default_rng(0)
    num_down_first = 0
    for seed in range(400):
        width, height, new_width, new_height = (int(2**power) for power in generator.uniform(4, 10, 4))
        if seed % 4 == 0:
            new_width, new_height = new_width // 16 * 16, new_height // 16 * 16
        if seed % 7 == 0:
            new_width = width
        if seed % 9 == 0:
            new_height = height
        picture = (noise if seed % 2 else extremes)(width, height, seed=seed)
        assert differing(resize, picture, new_width, new_height) == 0, (picture.size, new_width, new_height)
        num_down_first += is_down_first(picture.size, (new_width, new_height))
    assert 50 < num_down_first < 350


def test_the_other_order_gives_other_bytes(resize: NativeResize, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control: Pillow's rule about which axis goes first is needed, whichever way it decides."""
    monkeypatch.setattr(resizing, "is_down_first", lambda old, new: not is_down_first(old, new))
    assert differing(resize, noise(1500, 1000), 1024, 688) > 0
    assert differing(resize, noise(100, 900), 80, 300) > 0


def test_the_last_bit_of_a_weight_is_seen(resize: NativeResize, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control: tables that are nearly Pillow's do not pass."""

    def nearly(size: int, new_size: int) -> Windows:
        table = windows(size, new_size)
        return Windows(table.starts, table.weights + (table.weights > 1 << bicubic.WEIGHT_BITS - 3))

    monkeypatch.setattr(resizing, "windows", nearly)
    assert 0 < differing(resize, noise(1500, 1000), 1024, 688) < 2000


def test_no_window_leads_out_of_its_axis() -> None:
    generator = np.random.default_rng(0)
    for size, new_size in [(1, 1), (1, 16), (5000, 1), *generator.integers(1, 3000, (300, 2)).tolist()]:
        starts, weights = windows(size, new_size)
        assert len(starts) == len(weights) == new_size
        assert starts.min() >= 0
        assert (np.diff(starts) >= 0).all()
        assert (starts + weights.shape[1] <= size).all()
        if size != new_size:
            assert np.abs(weights.sum(axis=1) - (1 << bicubic.WEIGHT_BITS)).max() <= weights.shape[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [((1, 1), (16, 16)), ((13, 17), (16, 32)), ((1, 5000), (16, 1024)), ((5000, 1), (1024, 16)), ((300, 200), (5, 3))],
    ids=str,
)
def test_what_has_very_short_sides_is_left_to_pillow(
    resize: NativeResize, old: tuple[int, int], new: tuple[int, int]
) -> None:
    assert differing(resize, noise(*old), *new) == 0


def test_what_has_very_long_sides_is_left_to_pillow(resize: NativeResize) -> None:
    assert differing(resize, noise(70_000, 16), 1024, 16) == 0


def test_pictures_in_several_pieces_or_other_modes_are_left_to_pillow(resize: NativeResize) -> None:
    large = noise(2600, 2000)  # more than the 16 MiB that Pillow holds in one piece by itself
    assert find_pixels(large) is None
    assert differing(resize, large, 1024, 784) == 0
    grey = noise(40, 40, mode="L")
    assert find_pixels(grey) is None
    np.testing.assert_array_equal(resize(grey, 32, 32), resize_plainly(grey, 32, 32))


def test_pixels_are_found_where_they_are() -> None:
    picture = noise(40, 24)
    pixels = find_pixels(picture)
    assert pixels is not None
    expected = picture.convert("RGBX").tobytes()
    del picture  # the pixels are held
    found = string_at(pixels.address, len(expected))
    assert [found[channel::4] for channel in range(3)] == [expected[channel::4] for channel in range(3)]


def test_without_kernels_pillow_resizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = find_kernels()
    assert isinstance(open_resize(found), NativeResize)
    assert find_kernels(ComputeChoice.TORCH) is None
    assert open_resize(None) is resize_plainly
    assert open_resize(tmp_path / "kernels.so") is resize_plainly
    monkeypatch.setenv("DIPTYCH_NATIVE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert find_kernels() is None
