"""Cost of pictures: files into pixels, pixels into features.

Knows the vision service's own decoder and encoder. Does not know its processes.
"""

import time
from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks import checkpoints
from benchmarks.components.timing import Measurement, scaled, seconds_per_call
from benchmarks.peers.ours_vision import in_process_encoder
from common.image.header import ImageLimits
from common.native.resizing import find_kernels, open_resize
from vision_service.decoding.image import Pixels, decode_image, keep_pixel_memory

_LIMITS = ImageLimits(max_bytes=64 << 20, max_pixels=50_000_000)


def smooth_picture(width: int, height: int, *, format: str) -> bytes:
    """A file of slow changes and some noise, about as hard to decode as a photograph."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).normal(0, 4, (height, width))
    channels = [128 + 90 * np.sin(rows / (40 + 9 * k) + columns / (60 - 7 * k)) + noise for k in range(3)]
    file = BytesIO()
    Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)).save(file, format, quality=90)
    return file.getvalue()


def measure_decoding(seconds: float, *, sizes: Sequence[tuple[int, int]]) -> Iterator[Measurement]:
    """Milliseconds of a file's way to pixels of whole patches, by size and format, as in a decode worker."""
    kernels = find_kernels()
    keep_pixel_memory(_LIMITS.max_pixels, whole=kernels is not None)
    resize, shape = open_resize(kernels), checkpoints.PREPROCESSING
    for width, height in sizes:
        for format in ("JPEG", "PNG"):
            file = smooth_picture(width, height, format=format)

            def decode(file: bytes = file) -> object:
                return decode_image(file, preprocessing=shape, limits=_LIMITS, field="", resize=resize)

            value = scaled(seconds_per_call(decode, seconds=seconds, samples=3), 1e3)
            at = f"{width} x {height} {format}"
            yield Measurement(component="image decode", at=at, value=value, unit="ms", parameter=float(width * height))


def measure_encoder(model: str, seconds: float, *, sides: Sequence[int]) -> Iterator[Measurement]:
    """Milliseconds of encoding one square picture, by its side."""
    runner = in_process_encoder(checkpoints.checkpoint(model))
    for side in sides:
        pixels = random_pixels(side, side)

        def encode(pixels: Pixels = pixels) -> object:
            return runner.encode([pixels])

        value = scaled(seconds_per_call(encode, seconds=seconds, samples=3, clock=time.perf_counter), 1e3)
        yield Measurement(component="encoder", at=f"{side} x {side}", value=value, unit="ms", parameter=float(side))


def random_pixels(width: int, height: int) -> Pixels:
    """Pixels as decoding gives them, [height, width, 3]."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
