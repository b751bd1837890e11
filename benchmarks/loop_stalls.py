"""How long an event loop stands still while something is done.

Knows the loop and clocks. Does not know what is done.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Stall:
    """A time in which an event loop did nothing new, in milliseconds."""

    wall: float
    own: float
    """Processor time of the loop's thread meanwhile; the rest of the time others had its core."""


async def worst_stall(work: Awaitable[object]) -> Stall:
    """The longest time by which the event loop was late while something was done."""
    worst = Stall(0.0, 0.0)

    async def watch() -> None:
        nonlocal worst
        while True:
            begin, own = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.001)
            late = time.perf_counter() - begin - 0.001
            worst = max(worst, Stall(1e3 * late, 1e3 * (time.thread_time() - own)))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    await work
    await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return worst
