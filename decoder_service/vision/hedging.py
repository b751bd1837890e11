"""Two tries at the same thing, the second only where the first takes long.

Knows tasks and time. Does not know what is tried.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Attempt = Coroutine[Any, Any, None]


async def hedged(first: Attempt, second: Callable[[], Attempt | None], *, after: float) -> int:
    """Run `first`, and where it has not ended `after` seconds later what `second` gives beside it.

    Returns 0 or 1: which one succeeded first; the other is cancelled and has ended. Raises what the first one
    raised where none succeeds.
    """
    tasks = [asyncio.create_task(first)]
    try:
        await asyncio.wait(tasks, timeout=after)
        if not tasks[0].done() and (attempt := second()) is not None:
            tasks.append(asyncio.create_task(attempt))
        running = set(tasks)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    return tasks.index(task)
        await tasks[0]
        raise AssertionError("the first attempt failed")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
