"""Sends the messages of one stream, and ends the call where its caller does not take one for too long.

Knows a context and a clock. Does not know what is sent. One timer watches the whole stream, as a time limit for each
message would cost as much processor time as making the message. When the timer fires, it checks how long the message
being written has waited; if that is not too long, it is set to the moment at which it would be.
"""

import asyncio
from typing import Any

from common.calls.call import current_call
from common.calls.observer import Context
from common.errors import ResourceExhaustedError

_RETRY_SECONDS = 1.0


class StreamWriter:
    """Made and used in the task that handles the call; `close` must follow."""

    def __init__(self, context: Context, *, stall_seconds: float) -> None:
        """Write to a call; a message may wait for `stall_seconds`."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is handled in a task")
        self._context = context
        self._stall_seconds = stall_seconds
        self._task = task
        self._num_cancellations = task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        self._has_stalled = False
        self._timer = self._loop.call_later(stall_seconds, self._look)

    async def write(self, message: Any) -> None:  # noqa: ANN401 - any message
        """Send a message.

        Raises ResourceExhaustedError SLOW_CONSUMER where the caller's window stays full for too long.
        """
        self._waiting_since = self._loop.time()
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            # As in `asyncio.timeout`, somebody else's cancellation takes precedence over ours.
            if self._has_stalled and self._task.uncancel() <= self._num_cancellations:
                raise self._stalled() from None
            raise
        self._waiting_since = None

    def close(self) -> None:
        """Watch no more."""
        self._timer.cancel()

    def _look(self) -> None:
        since, now = self._waiting_since, self._loop.time()
        end = self._stall_seconds + (now if since is None else since)
        if end > now:
            self._timer = self._loop.call_at(end, self._look)
        else:
            self._has_stalled = True
            self._task.cancel()

    def _stalled(self) -> ResourceExhaustedError:
        error = ResourceExhaustedError(
            "SLOW_CONSUMER",
            f"the caller did not read for {self._stall_seconds} seconds",
            metadata={"limit": self._stall_seconds},
            retry_after=_RETRY_SECONDS,
        )
        current_call().ending = error
        return error
