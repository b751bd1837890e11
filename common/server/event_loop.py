"""The event loop that a service runs on: asyncio's own, or uvloop's where `DIPTYCH_UVLOOP` is 1.

Knows the two and nothing that runs on them. A message of a stream takes a few turns of the loop, and a turn of uvloop's
takes half the processor time (docs/performance.md). It is not the default: a service on it was once seen to wait for
ever for a decode worker that was ready.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
VARIABLE = "DIPTYCH_UVLOOP"


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop; None for asyncio's own."""
    if os.environ.get(VARIABLE) != "1":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
