"""The event loop that a service runs on: uvloop's where it is installed, else asyncio's own.

Knows the two and nothing that runs on them. A message of a stream takes a few turns of the loop, and a turn of uvloop's
takes half the processor time (docs/performance.md). There are
platforms that it has no builds for; everything works without it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
