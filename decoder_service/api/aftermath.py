"""What is still to be done for calls that have been answered.

Knows tasks. Does not know what they do. A caller does not wait for the end of a step that computes nothing for it any
more; something else must, and must not be forgotten.
"""

import asyncio
import logging
from collections.abc import Coroutine

_log = logging.getLogger(__name__)


class Aftermath:
    """Work that nobody waits for but the end of the service; lives on the event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, work: Coroutine[object, object, None]) -> None:
        """Have it done; what it raises is a bug, and goes to the log."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def settled(self) -> None:
        """Wait until all is done, also what is added meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a request's end failed", exc_info=task.exception())
