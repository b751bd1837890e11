"""Waits for what comes by itself."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Return when the condition holds. Raises TimeoutError where that takes longer."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
