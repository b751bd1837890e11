"""Logs the calls that are refused before they are received, and no more of them than a disk can take.

Knows how many lines were written lately. Does not know why a call is refused. A caller that is refused can call again
as fast as the network allows, and a full queue refuses everybody. So beyond some lines a second refusals are only
counted, and the next line says how many were left out.
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
