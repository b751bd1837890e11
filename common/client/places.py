"""How many calls a client has under way at the same time; the others wait for their turn.

Knows threads, asyncio and deadlines. Does not know calls. A server takes so many calls on one connection and refuses
more than that as UNAVAILABLE, and where one has been refused, gRPC sends all that it held back, to be refused as well.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
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
    """A few places, given to those who wait first come first served; for threads, or for the tasks of one event loop.

    Each is known by what wakes it. No lock is held: a place may be given back in the midst of any other operation on
    the same thread, by a signal's handler or the garbage collector, so each step is one atomic operation of a deque.
    """

    def __init__(self, number: int) -> None:
        """Have this many. Raises ValueError where that is none."""
        if number < 1:
            raise ValueError(f"max_calls must be 1 or more, got {number}")
        self._free = deque([None] * number)
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_closed = False

    @contextmanager
    def one(self, end: float | None) -> Iterator[None]:
        """Have a place while inside. Raises ClientError where none is free in time, or all is closed."""
        turn = threading.Lock()
        turn.acquire()
        self._join(turn.release)
        try:
            seconds = seconds_until(end)
            turn.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))
            self._check(end)
            yield
        finally:
            self._leave(turn.release)

    @asynccontextmanager
    async def one_async(self, end: float | None) -> AsyncIterator[None]:
        """The same for a task."""
        turn = asyncio.Event()
        self._join(turn.set)
        try:
            if not turn.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds_until(end)):
                        await turn.wait()
            self._check(end)
            yield
        finally:
            self._leave(turn.set)

    def close(self) -> None:
        """Refuse those that wait, and all that come."""
        self._is_closed = True
        self._hand_out()

    def _join(self, wake: Callable[[], None]) -> None:
        """Wait, to be woken with a place, or without one where all is closed."""
        self._waiting.append(wake)
        self._hand_out()

    def _leave(self, wake: Callable[[], None]) -> None:
        """Wait no more, or let the next one have the place."""
        try:
            self._waiting.remove(wake)
        except ValueError:
            self._free.append(None)
            self._hand_out()

    def _check(self, end: float | None) -> None:
        """Raise ClientError where a call may not begin: its time is over, or all is closed."""
        if self._is_closed:
            raise ClientError(grpc.StatusCode.CANCELLED, "", "the client was closed before the call's turn came")
        if end is not None and not time.monotonic() < end:
            raise ClientError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the time was over before the call's turn came")

    def _hand_out(self) -> None:
        # Looked at again after each try: what one side has in its hands for a moment the other does not see.
        while self._waiting and (self._free or self._is_closed):
            with suppress(IndexError):
                if not self._is_closed:
                    self._free.pop()
                try:
                    wake = self._waiting.popleft()
                except IndexError:
                    self._free.append(None)
                else:
                    wake()
