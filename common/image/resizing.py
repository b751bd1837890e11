"""Resizes pictures as transformers has Pillow do it: bicubic and antialiased, on 8-bit values.

Knows Pillow. Does not know files or patches. `common.native.resizing` gives the same bytes sooner, where there are
kernels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Resize = Callable[[Image.Image, int, int], NDArray[np.uint8]]
"""Resizes a picture of mode RGB to a width and a height: [height, width, 3]."""


def resize_plainly(picture: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """`Resize` by Pillow itself."""
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
