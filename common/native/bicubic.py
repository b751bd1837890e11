"""Where bicubic, antialiased resizing looks along an axis, and with which weights: bit for bit as Pillow has them.

Knows sizes and numbers. Does not know pictures. The algorithm is that of Pillow 13's src/libImaging/Resample.c, whose
weights are whole numbers with 22 bits after the point. Doubles are computed operation by operation in its order, as
NumPy does it: a compiler might fuse a multiplication and an addition, and round once where Pillow rounds twice.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WEIGHT_BITS = 22
_SUPPORT = 2.0


class Windows(NamedTuple):
    """What each output place sees of an axis. One that keeps its size has no taps: no pass is made over it."""

    starts: NDArray[np.int32]
    """First place that is seen, [size]; never falls."""
    weights: NDArray[np.int32]
    """Of the places from there on, [size, taps]; zero where an output sees fewer than others."""


def windows(size: int, new_size: int) -> Windows:
    """The windows that make an axis of `size` places one of `new_size`. None leads out of the axis."""
    if size == new_size:
        return Windows(np.zeros(size, np.int32), np.zeros((size, 0), np.int32))
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    centres = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), size)
    taps = int((last - first).max())
    starts = np.minimum(first, size - taps)
    places = starts + np.arange(taps)[:, None]
    weights = _keys((places - centres + 0.5) * (1.0 / stretch))
    weights[(places < first) | (places >= last)] = 0.0
    # One after the other: NumPy's own sum adds in another order.
    weights /= np.add.accumulate(weights)[-1]
    return Windows(starts.astype(np.int32), np.ascontiguousarray(_rounded(weights * (1 << WEIGHT_BITS)).T))


def is_down_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether columns are resized before rows, given widths and heights: where they lose more than twice as much."""
    return old[1] - new[1] > max(0, 2 * (old[0] - new[0]))


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5 ("Cubic convolution interpolation for digital image processing", 1981)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _rounded(x: NDArray[np.float64]) -> NDArray[np.int32]:
    """To the nearest whole number, half away from zero."""
    rounded: NDArray[np.int32] = (x + np.copysign(0.5, x)).astype(np.int32)
    return rounded
