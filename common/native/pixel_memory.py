"""The memory in which Pillow holds a picture, without a copy of it.

Knows Arrow's C data interface (arrow.apache.org/docs/format/CDataInterface.html), by which Pillow shows its pixels.
Does not know what is done with them.
"""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int64, c_void_p, py_object
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class PixelMemory:
    """A picture's pixels of four bytes, [height, width, 4]."""

    address: int
    owner: object
    """While it lives, the pixels stay where they are."""


class _ArrowArray(Structure):
    """`ArrowArray` of the interface."""


_ArrowArray._fields_ = (
    *((name, c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", POINTER(c_void_p)),
    ("children", POINTER(POINTER(_ArrowArray))),
    ("dictionary", c_void_p),
    ("release", c_void_p),
    ("private_data", c_void_p),
)

_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


def find_pixels(picture: Image.Image) -> PixelMemory | None:
    """Where a picture's pixels are; None where they are not four bytes long, or not all in one piece."""
    try:
        _, capsule = picture.__arrow_c_array__()
    except ValueError:
        return None
    array = ctypes.cast(_pointer(capsule, b"arrow_array"), POINTER(_ArrowArray)).contents
    num_pixels = picture.width * picture.height
    if array.length != num_pixels or array.offset or array.n_children != 1:
        return None
    channels = array.children[0].contents
    if channels.length != 4 * num_pixels or channels.offset or channels.n_buffers != 2 or not channels.buffers[1]:
        return None
    return PixelMemory(channels.buffers[1], capsule)
