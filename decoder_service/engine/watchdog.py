"""Tells when the engine hangs, and when it goes on.

Knows since when the engine's thread is at one piece of work. Does not know what the work is or what follows from it:
a step never ends by force, but a probe may have the process replaced.
"""

import asyncio
import logging
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

LOOKS_PER_LIMIT = 10
"""A hang is noticed at most a tenth of its limit late."""


class Watchdog:
    """Compares the age of the work under way with what it may be."""

    def __init__(
        self,
        busy_since: Callable[[], float | None],
        *,
        max_seconds: float,
        report: Callable[[bool], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what tells since when the thread is at its work, and what hears each change: whether it goes on."""
        self._busy_since = busy_since
        self._max_seconds = max_seconds
        self._report = report
        self._now = now
        self._hangs = False

    def look(self) -> None:
        """Report if something changed."""
        since = self._busy_since()
        age = 0.0 if since is None else self._now() - since
        if (age > self._max_seconds) != self._hangs:
            self._hangs = not self._hangs
            _log.error("the engine hangs" if self._hangs else "the engine goes on", extra={"seconds": round(age, 1)})
            self._report(not self._hangs)

    async def run(self) -> None:
        """Look again and again; ends by being cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._max_seconds / LOOKS_PER_LIMIT)
