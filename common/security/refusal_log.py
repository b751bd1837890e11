"""Logs the calls that are refused before they are received, and no more of them than a disk can take.

Knows how many lines were written lately. Does not know why a call is refused. Whoever is not let in can call as often
as the network allows, and a full queue refuses everybody, so lines above a number each second are counted, and the next
one that is written says how many.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from common.calls.status import status_code
from common.errors import DiptychError

MAX_LINES_PER_SECOND: Final = 10

_log = logging.getLogger(__name__)


class RefusalLog:
    """The refusals of one gate; used by one thread."""

    def __init__(self, *, level: int = logging.WARNING, clock: Callable[[], float] = time.monotonic) -> None:
        self._level = level
        self._clock = clock
        self._second = clock()
        self._num_lines = 0
        self._num_left_out = 0

    def refused(self, path: str, error: DiptychError, *, caller: str) -> None:
        """Tell of a call of /SERVICE/METHOD; `caller` is empty where it did not prove a name."""
        now = self._clock()
        if now - self._second >= 1:
            self._second, self._num_lines = now, 0
        if self._num_lines >= MAX_LINES_PER_SECOND:
            self._num_left_out += 1
            return
        self._num_lines += 1
        extra: dict[str, object] = {"method": path, "status": status_code(error).name, "reason": error.reason}
        if caller:
            extra["caller"] = caller
        if self._num_left_out:
            extra["left_out"], self._num_left_out = self._num_left_out, 0
        _log.log(self._level, "call refused", extra=extra)
