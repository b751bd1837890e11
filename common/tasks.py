"""What became of a task, or of another future. Does not know what it did."""

import asyncio
from typing import Any


def has_succeeded(task: asyncio.Future[Any]) -> bool:
    """Whether it is done, without an error."""
    return task.done() and not task.cancelled() and task.exception() is None
