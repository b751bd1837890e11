"""Copies chunks of features in one pass over memory: `common.features.chunk_copy.CopyChunk` by the kernels.

Knows the library's interface in C. Does not know tensors: what receives features needs no torch. Calls release Python's
lock.
"""

import ctypes
import logging
from pathlib import Path

import numpy as np

from common.features.chunk_copy import VALUE_TYPES, Copied, CopyChunk, copy_plainly
from common.model.settings import ComputeChoice
from common.native.build import best_library, default_cache
from common.native.loading import load
from common.native.processor import NativeUnavailableError

_log = logging.getLogger(__name__)


class ChunkCopier:
    """A `CopyChunk`."""

    def __init__(self, path: Path) -> None:
        """Load the library. Raises NativeUnavailableError."""
        library = load(path)
        if not library.diptych_can_take():
            raise NativeUnavailableError("the processor has no instructions for checksums")
        self._take = library.diptych_take_chunk
        self._take.restype = ctypes.c_int64
        self._take.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_uint32)

    def __call__(self, place: memoryview, data: memoryview, dtype: str) -> Copied:
        """Copy and check. Raises ValueError where the place is not as long as the data, or cannot be written to."""
        if place.nbytes != data.nbytes or place.readonly:
            raise ValueError(f"{data.nbytes} bytes do not go to a place of {place.nbytes}")
        kind = VALUE_TYPES[dtype]
        to = ctypes.addressof(ctypes.c_char.from_buffer(place))
        found = self._take(to, _address(data), data.nbytes, kind.size, kind.exponent)
        return Copied(crc32=found & 0xFFFFFFFF, is_finite=not found >> 32)


def open_copy(compute: ComputeChoice = ComputeChoice.AUTO) -> CopyChunk:
    """The best way to copy here; the plain one without kernels, or where plain torch computes.

    The first time on a machine takes seconds.
    """
    if compute is ComputeChoice.TORCH:
        return copy_plainly
    try:
        return ChunkCopier(best_library(default_cache())[0])
    except NativeUnavailableError as error:
        _log.info("features are copied without kernels", extra={"reason": str(error)})
        return copy_plainly


def _address(data: memoryview) -> int:
    """Of memory that may only be read, which ctypes gives none of."""
    address: int = np.frombuffer(data, np.uint8).ctypes.data
    return address
