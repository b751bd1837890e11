"""How many calls a client has under way at the same time; the others wait for their turn.

Knows threads, asyncio and deadlines. Does not know calls. A server takes so many calls on one connection and refuses
more than that as UNAVAILABLE, and where one has been refused, gRPC sends all that it held back, to be refused as well.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import grpc

from common.client.types import ClientError

MAX_CALLS: Final = 64
"""Less than the 100 of a server's default, which for a while goes on counting calls that have ended on this side."""


LONGEST_SECONDS: Final = 1e9
"""A later end gRPC takes for one that is long past."""


def end_after(timeout: float | None) -> float | None:
    """When a call must have ended, by the monotonic clock."""
    return None if timeout is None else time.monotonic() + min(timeout, LONGEST_SECONDS)


def seconds_until(end: float | None) -> float | None:
    """Seconds until a time of the monotonic clock, 0 once it is over; None without one."""
    return None if end is None else max(0.0, end - time.monotonic())


class Places:
    """For threads."""

    def __init__(self, number: int) -> None:
        """Have this many; 1 or more."""
        self._free = threading.Semaphore(number)

    @contextmanager
    def one(self, end: float | None) -> Iterator[None]:
        """Have a place while inside. Raises ClientError where none is free in time."""
        if not self._free.acquire(timeout=seconds_until(end)):
            raise _too_late()
        try:
            yield
        finally:
            self._free.release()


class AsyncPlaces:
    """For one event loop."""

    def __init__(self, number: int) -> None:
        """Have this many; 1 or more."""
        self._free = asyncio.Semaphore(number)

    @asynccontextmanager
    async def one(self, end: float | None) -> AsyncIterator[None]:
        """Have a place while inside. Raises ClientError where none is free in time."""
        try:
            async with asyncio.timeout(seconds_until(end)):
                await self._free.acquire()
        except TimeoutError:
            raise _too_late() from None
        try:
            yield
        finally:
            self._free.release()


def _too_late() -> ClientError:
    return ClientError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "too many other calls of this client were under way")
