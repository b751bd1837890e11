"""Cubic resizing without antialias, as OpenCV's INTER_CUBIC does it, which mistral-common builds on.

Knows arrays. Does not know files or models. Each output pixel is a weighted sum of 4 x 4 input pixels, in
float32 and not cut to the 8-bit range; beyond the border the edge pixel repeats. The kernel is Keys'
("Cubic convolution interpolation for digital image processing", 1981) with a = -0.75.
"""

import numpy as np
from numpy.typing import NDArray

_A = -0.75


def resize_cubic(pixels: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.float32]:
    """Resize pixels [rows, columns, channels] to float32 [height, width, channels]."""
    rows, columns, _ = pixels.shape
    # The axis that shrinks the picture most goes first: the array in between is never larger than it must be.
    if height * columns <= rows * width:
        return _along_columns(_along_rows(pixels, height), width)
    return _along_rows(_along_columns(pixels, width), height)


def _along_rows(pixels: NDArray[np.uint8] | NDArray[np.float32], height: int) -> NDArray[np.float32]:
    places, weights = _taps(pixels.shape[0], height)
    out = np.zeros((height, *pixels.shape[1:]), np.float32)
    for place, weight in zip(places, weights, strict=True):
        out += pixels[place] * weight[:, None, None]
    return out


def _along_columns(pixels: NDArray[np.uint8] | NDArray[np.float32], width: int) -> NDArray[np.float32]:
    places, weights = _taps(pixels.shape[1], width)
    out = np.zeros((pixels.shape[0], width, pixels.shape[2]), np.float32)
    for place, weight in zip(places, weights, strict=True):
        out += pixels[:, place] * weight[None, :, None]
    return out


def _taps(size: int, new_size: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Input places and weights of every output place along one axis: two [4, new_size]."""
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    first = np.floor(centre).astype(np.intp)
    t = centre - first
    places = np.clip(first + np.arange(-1, 3)[:, None], 0, size - 1)
    weights = np.stack((_outer(t + 1), _inner(t), _inner(1 - t), _outer(2 - t)))
    return places, weights.astype(np.float32)


def _inner(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel at distances up to 1."""
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _outer(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel at distances from 1 to 2."""
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
