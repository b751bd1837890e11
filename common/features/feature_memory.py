"""Memory for image features, the pages of which are there before the event loop writes to it.

Knows the system's pages. Does not know features. The system finds and clears a page when it is first written to: 0.2 to
20 ms for 2 MiB. A thread copies chunks of features, and the event loop those that the thread has not begun.
"""

import asyncio
import ctypes
import mmap
import sys

import numpy as np

_SMALL = 1 << 20
"""Bytes that are not worth a thread: at most 256 pages."""
_MADV_POPULATE_WRITE = 23
_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


def reserve(num_bytes: int) -> memoryview:
    """Memory with anything in it, the pages of which need not be there yet. Raises MemoryError.

    Where it is large it is not the allocator's, which would take for it what messages had and will need again, and
    write notes of its own to new pages when it divides what it has. Small pages: the system may look for large ones for
    100 ms, and holds up the whole process meanwhile.
    """
    if num_bytes <= _SMALL or sys.platform != "linux":
        # Not cleared: nobody reads what was not written.
        return np.empty(num_bytes, np.uint8).data
    try:
        return memoryview(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError as error:
        raise MemoryError(f"the system does not give {num_bytes} bytes for features") from error


class PageMaker:
    """Makes the pages of memory on a thread, for one place after the other."""

    def __init__(self) -> None:
        """Have nothing under way."""
        # One at a time: the first goes on soonest, and other work finds a thread.
        self._turn = asyncio.Lock()
        self._library = ctypes.CDLL(None) if sys.platform == "linux" else None

    async def make(self, place: memoryview) -> None:
        """Return when all pages of a place are there, whatever is in them, where the system can do that.

        They are made from the first to the last, as far as it has come also after the call was cancelled. Others may
        write to the place meanwhile.
        """
        if place.nbytes > _SMALL and not self._has_last_page(place):
            async with self._turn:
                await asyncio.to_thread(self._make, place)

    def _has_last_page(self, place: memoryview) -> bool:
        found = ctypes.c_ubyte(0)
        last = (_address(place) + place.nbytes - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._library is None or self._library.mincore(_pointer(last), _size(1), ctypes.byref(found)):
            return True  # Nothing can be done about it here.
        return bool(found.value & 1)

    def _make(self, place: memoryview) -> None:
        first = -(-_address(place) // mmap.PAGESIZE) * mmap.PAGESIZE
        num_bytes = _address(place) + place.nbytes - first
        if self._library is not None:
            # Where it is refused, as before Linux 5.14, whoever writes makes the pages.
            self._library.madvise(_pointer(first), _size(num_bytes), _MADV_POPULATE_WRITE)


def _address(place: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(place))
