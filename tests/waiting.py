"""Waits for what comes by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Return when the condition holds. Raises TimeoutError where that takes longer."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def within(seconds: float, work: Awaitable[T]) -> T:
    """What `work` returns. Raises TimeoutError where it takes longer, without what others on the machine keep us from.

    Time is counted in naps of a hundredth of a second: where this process gets no core, a nap takes as much longer as
    the work does.
    """
    task = asyncio.ensure_future(work)
    for _ in range(round(100 * seconds)):
        await asyncio.wait({task}, timeout=0.01)
        if task.done():
            return task.result()
    task.cancel()
    await asyncio.wait({task})
    raise TimeoutError
