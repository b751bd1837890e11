"""Resizes pictures by the kernels: `common.image.resizing.Resize` with Pillow's own bytes, in less time.

Knows the library's interface in C. Does not know files, tensors or services: a process that opens strangers' pictures
uses it without torch. Calls release Python's lock.
"""

import logging
from ctypes import POINTER, Structure, byref, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.image.resizing import Resize, resize_plainly
from common.model.settings import ComputeChoice
from common.native.bicubic import is_down_first, windows
from common.native.build import best_library, default_cache
from common.native.loading import load
from common.native.pixel_memory import find_pixels
from common.native.processor import NativeUnavailableError

_SHORTEST, _LONGEST = 16, 1 << 16
"""Sides that the kernel is for: from a register's worth of pixels to where a table of weights is large."""
_NO_MEMORY = 2

_log = logging.getLogger(__name__)


class _Axis(Structure):
    """`Axis` of resize.h."""

    _fields_ = (("size", c_int64), ("taps", c_int64), ("starts", c_void_p), ("weights", c_void_p))


class NativeResize:
    """A `Resize`. Pictures with very short or long sides, or that Pillow holds in several pieces, are left to it."""

    def __init__(self, path: Path) -> None:
        """Load the library. Raises NativeUnavailableError."""
        self._resize = load(path).diptych_resize
        self._resize.restype = c_int32
        self._resize.argtypes = (c_void_p, c_int64, c_int64, POINTER(_Axis), POINTER(_Axis), c_int32, c_void_p)

    def __call__(self, picture: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
        """Resize. Raises MemoryError."""
        old, new = picture.size, (width, height)
        if picture.mode != "RGB" or min(*old, *new) < _SHORTEST or max(*old, *new) > _LONGEST:
            return resize_plainly(picture, width, height)
        # Both this and the tables must live as long as the call.
        pixels = find_pixels(picture)
        if pixels is None:
            return resize_plainly(picture, width, height)
        tables = [windows(*sides) for sides in zip(old, new, strict=True)]
        across, down = (
            _Axis(*table.weights.shape, table.starts.ctypes.data, table.weights.ctypes.data) for table in tables
        )
        resized = np.empty((height, width, 3), np.uint8)
        failed = self._resize(
            pixels.address, *old, byref(across), byref(down), is_down_first(old, new), resized.ctypes.data
        )
        if failed == _NO_MEMORY:
            raise MemoryError
        if failed:
            raise RuntimeError(f"the windows do not fit a picture of {old} pixels")
        return resized


def find_kernels(compute: ComputeChoice = ComputeChoice.AUTO) -> Path | None:
    """The library that `open_resize` takes here; None without kernels, or where plain torch computes.

    The first time on a machine takes seconds.
    """
    if compute is ComputeChoice.TORCH:
        return None
    try:
        path = best_library(default_cache())[0]
        NativeResize(path)
    except NativeUnavailableError as error:
        _log.info("pictures are resized without kernels", extra={"reason": str(error)})
        return None
    return path


def open_resize(path: Path | None) -> Resize:
    """The best way to resize with the library at a path, which is the plain one where it does not load."""
    if path is None:
        return resize_plainly
    try:
        return NativeResize(path)
    except NativeUnavailableError:
        return resize_plainly
