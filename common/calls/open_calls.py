"""The calls that are being handled, and a way to end them all.

Knows tasks. Does not know what they do. gRPC would end calls that outlive a server with a text of its own, which
tells a caller nothing; this ends them with an error of ours while the connection is still there.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from common.calls.call import Call, current_call
from common.errors import DiptychError


class OpenCalls:
    """Counts the calls of a server while each is in `one`."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[object], Call] = {}
        self._ending: dict[asyncio.Task[object], DiptychError] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Stand around one call, in its own task. Raises the error of `end`, unless the caller left as well."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is handled in a task")
        self._tasks[task] = current_call()
        try:
            yield
        except asyncio.CancelledError:
            error = self._ending.get(task)
            if error is not None and task.uncancel() == 0:
                raise error from None
            raise
        finally:
            del self._tasks[task]
            self._ending.pop(task, None)

    def end(self, error: DiptychError) -> None:
        """End every call that is open now with an error."""
        for task, call in self._tasks.items():
            if task not in self._ending:
                self._ending[task] = call.ending = error
                task.cancel()
