"""Memory for image features, the pages of which are there before the event loop writes to it.

Knows the system's pages. Does not know features. The system finds and clears a page when it is first written to: 0.2 to
20 ms for 2 MiB. A thread copies chunks of features, and the event loop those that the thread has not begun.
"""

import asyncio
import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np

_SMALL = 1 << 20
"""Bytes that are not worth a thread: at most 256 pages."""
_MADV_POPULATE_WRITE = 23
_PIECE = 2 << 20
"""Bytes for which pages are made in one go, 0.6 ms. Whoever wants memory of the system, or this core, waits so long."""
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


def lend(memory: memoryview, *, then: Callable[[memoryview], object]) -> memoryview:
    """The same memory for others; `then` gets it when nobody refers to what they have or to any part of that.

    It is called on the thread that lets go last, at whatever point that is at, but not when the process ends.
    """
    lent = np.ndarray(memory.nbytes, np.uint8, buffer=memory)
    weakref.finalize(lent, then, memory).atexit = False
    return lent.data


def give_back(memory: memoryview) -> None:
    """Let the system have memory that nobody else refers to, on a thread: 42 MB take it 1 to 4 ms.

    May be called at whatever point; where no event loop runs on this thread it is done at once.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _unmap(memory)
    else:
        loop.call_soon(_unmap_on_thread, loop, memory)


def _unmap_on_thread(loop: asyncio.AbstractEventLoop, memory: memoryview) -> None:
    with suppress(RuntimeError):  # The loop is about to end, and has no threads any more.
        loop.run_in_executor(None, _unmap, memory)


def _unmap(memory: memoryview) -> None:
    mapping = memory.obj
    memory.release()
    if isinstance(mapping, mmap.mmap):
        # Not left to whoever refers to it last: that may be the caller's frame, on the event loop.
        mapping.close()


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
        end = _address(place) + place.nbytes
        if self._library is None:
            return
        for start in range(first, end, _PIECE):
            # Where it is refused, as before Linux 5.14, whoever writes makes the pages.
            num_bytes = min(_PIECE, end - start)
            self._library.madvise(_pointer(start), _size(num_bytes), _MADV_POPULATE_WRITE)
            os.sched_yield()  # For an event loop that waits for this core.


def _address(place: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(place))
