"""Copies chunks of features in one pass over memory, on a thread of their own: `common.features.chunk_copy.CopyChunk`.

Knows the library's interface in C. Does not know tensors: what receives features needs no torch. The thread has no need
of Python's lock, so that the event loop reads the next message meanwhile.
"""

import ctypes
import logging
import weakref
from collections import deque
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_uint32, c_void_p
from functools import partial
from pathlib import Path

from common.features.chunk_copy import Copied, CopyChunk, copy_plainly
from common.features.feature_spec import VALUE_TYPES
from common.model.settings import ComputeChoice
from common.native.build import best_library, default_cache
from common.native.loading import load
from common.native.processor import NativeUnavailableError

_log = logging.getLogger(__name__)
_MOST = 2
"""Chunks that keep their messages at a time, however many streams there are: the heap would grow by one for each."""


class _Buffer(ctypes.Structure):
    """`Py_buffer` of Python's interface in C: where memory begins, whose it is, and more that is not looked at."""

    _fields_ = (("start", c_void_p), ("owner", c_void_p), ("rest", c_int64 * 8))


class ChunkCopier:
    """A `CopyChunk`."""

    def __init__(self, path: Path) -> None:
        """Load the library and start the thread. Raises NativeUnavailableError."""
        library = load(path)
        if not library.diptych_can_take():
            raise NativeUnavailableError("the processor has no instructions for checksums")
        library.diptych_mover_new.restype = c_void_p
        library.diptych_mover_delete.argtypes = (c_void_p,)
        mover: int | None = library.diptych_mover_new()
        if mover is None:
            raise NativeUnavailableError("the system gives no thread to copy chunks")
        self._mover = mover
        weakref.finalize(self, library.diptych_mover_delete, self._mover).atexit = False
        self._moves: deque[weakref.ref[ChunkMove]] = deque()
        # To let go of Python's lock and to get it again would take longer than to begin does.
        self._begin = ctypes.PyDLL(str(path)).diptych_move_begin
        self._begin.restype = c_void_p
        self._begin.argtypes = (c_void_p, c_void_p, c_void_p, c_int64, c_int32, c_uint32)
        self._end = library.diptych_move_end
        self._end.restype = c_int64
        self._end.argtypes = (c_void_p,)

    def __call__(self, place: memoryview, data: memoryview, dtype: str) -> "ChunkMove":
        """Begin. Raises ValueError where the place is not as long as the data, or cannot be written to."""
        if place.nbytes != data.nbytes or place.readonly:
            raise ValueError(f"{data.nbytes} bytes do not go to a place of {place.nbytes}")
        if len(self._moves) == _MOST:
            oldest = self._moves.popleft()()
            if oldest is not None:
                oldest.wait()
        kind = VALUE_TYPES[dtype]
        to = ctypes.addressof(ctypes.c_char.from_buffer(place))
        move = self._begin(self._mover, to, _address(data), data.nbytes, kind.size, kind.exponent)
        begun = ChunkMove(partial(self._end, move), place, data)
        self._moves.append(weakref.ref(begun))
        return begun


class ChunkMove:
    """A chunk on its way, a `Copying`; keeps the memory that it goes from and to."""

    def __init__(self, end: Callable[[], int], place: memoryview, data: memoryview) -> None:
        """Stand for what was begun with this memory; `end` waits for it, once."""
        self._end = end
        self._memory: tuple[memoryview, memoryview] | None = (place, data)
        self._copied = Copied(0, False)

    def wait(self) -> Copied:
        """What was found, when all is in its place."""
        if self._memory is not None:
            found = self._end()
            self._copied, self._memory = Copied(crc32=found & 0xFFFFFFFF, is_finite=not found >> 32), None
        return self._copied

    def __del__(self) -> None:
        """Wait: the memory goes, and must not be written to any more."""
        self.wait()


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
    # By Python's own interface: by an array of numpy's it takes 12 to 18 us more, where nothing is in the caches.
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(data), ctypes.byref(buffer), 0)
    start: int = buffer.start
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return start
