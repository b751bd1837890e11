"""Picture files for tests, made by Pillow."""

from io import BytesIO

import numpy as np
from PIL import Image

from common.image.header import ImageLimits
from common.image.preprocessing import Preprocessing, PreprocessingMode

LIMITS = ImageLimits(max_bytes=20 * 2**20, max_pixels=50_000_000)
"""The defaults of the services."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocessing(mode: PreprocessingMode, *, image_size: int = 1024, patch_size: int = 16) -> Preprocessing:
    return Preprocessing(mode=mode, patch_size=patch_size, image_size=image_size, mean=CLIP_MEAN, std=CLIP_STD)


def noise(width: int, height: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture in which every pixel and every corner differs."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values).convert("RGB").convert(mode) if "A" not in mode else Image.fromarray(values)


def save(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()
