"""How long an event loop stands still while something is done.

Knows the loop and clocks. Does not know what is done.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stall:
    """How long an event loop did nothing new, at most, in milliseconds."""

    wall: float
    """By which it was late."""
    own: float
    """Processor time of its thread between two looks, of which the first millisecond makes nobody late. Not always in
    the same place: time by which it was late and did not work, others had its core."""


async def worst_stall(work: Awaitable[object]) -> Stall:
    """The longest time by which the event loop was late while something was done."""
    worst = Stall(0.0, 0.0)

    async def watch() -> None:
        nonlocal worst
        while True:
            begin, own = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.001)
            late = time.perf_counter() - begin - 0.001
            worked = time.thread_time() - own
            worst = Stall(max(worst.wall, 1e3 * late), max(worst.own, 1e3 * worked))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    await work
    await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return worst
