"""Memory for image features that is there before the event loop writes to it.

Knows the system's pages. Does not know features. The system finds and clears a page when it is first written to: 0.2 to
20 ms for 2 MiB. Chunks of features are copied by a thread, but by the event loop where the thread has no time. Large
memory is not the allocator's, which would take for it what messages had and will need again, and write notes of its own
to new pages when it divides what it has.
"""

import asyncio
import mmap
import sys
from contextlib import suppress

import numpy as np

_PAGE_BYTES = 4096
_SMALL = 1 << 20
"""Bytes that are not worth a thread: at most 256 pages."""


class FeatureMemory:
    """Gives memory, and makes it on a thread, piece by piece."""

    def __init__(self) -> None:
        """Have nothing under way."""
        self._turn = asyncio.Lock()

    def reserve(self, num_bytes: int) -> memoryview:
        """Memory with anything in it, the pages of which need not be there yet. Raises MemoryError."""
        if num_bytes <= _SMALL or sys.platform != "linux":
            # Not cleared: nobody reads what was not written.
            return np.empty(num_bytes, np.uint8).data
        try:
            memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"the system does not give {num_bytes} bytes for features") from error
        with suppress(OSError):  # There may be no large pages.
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(memory)

    async def touch(self, place: memoryview) -> None:
        """Return when every page of a place is there. Writes to it, also for a while after it was cancelled."""
        if place.nbytes <= _SMALL:
            return
        # One after the other: whoever came first goes on soonest, and other work finds a thread.
        async with self._turn:
            await asyncio.to_thread(_touch, place)


def _touch(place: memoryview) -> None:
    # Without Python's lock, which it gives back while it writes to so many places.
    np.frombuffer(place, np.uint8)[::_PAGE_BYTES] = 0
