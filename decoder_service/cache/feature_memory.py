"""Memory for image features that is there before the event loop writes to it.

Knows the system's pages. Does not know features. What the allocator gives may never have been touched: the system then
finds and clears each page when it is first written to, for 2 MiB 0.5 to 20 ms. Chunks of features are copied by a
thread, but also by the event loop where the thread has no time.
"""

import asyncio

import numpy as np

_PAGE_BYTES = 4096
_SMALL = 1 << 20
"""Bytes that are not worth a thread: at most 256 pages."""


class FeatureMemory:
    """Makes memory on a thread, piece by piece."""

    def __init__(self) -> None:
        """Have nothing under way."""
        self._turn = asyncio.Lock()

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
