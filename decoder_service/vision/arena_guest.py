"""Whether one replica's shared memory is used by this service, and when to try again where it is not.

Knows the name of the replica's socket. Does not know how a visit is made (see `arena_visit`). Memory that is not to be
had is no fault: features come over the network then. But on one host it costs half the speed, so it is told once, and
tried again from time to time: whoever turned us away may have had too many readers, or been too busy to answer.
"""

import logging
import time
from collections.abc import Callable
from enum import Enum

from decoder_service.vision.arena_visit import ArenaVisit

_log = logging.getLogger(__name__)
_TRIES_IN_A_ROW = 3
_PAUSE = 60.0
"""Seconds between two tries after those."""


class Sharing(Enum):
    """What became of the memory that a replica offers."""

    MAPPED = "mapped"
    OUT_OF_REACH = "out_of_reach"


class ArenaGuest:
    """This service as a user of one replica's memory; follows what the replica says of it."""

    def __init__(self, address: str, *, wants_memory: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Follow the replica at `address`, which is named in the log."""
        self.visit: ArenaVisit | None = None
        """None where the memory is not to be had."""
        self._address = address
        self._wants_memory = wants_memory
        self._clock = clock
        self._name = ""
        self._num_failures = 0
        self._tried_at = 0.0

    @property
    def sharing(self) -> Sharing | None:
        """What became of the memory; None where none is offered or wanted."""
        if not self._name:
            return None
        return Sharing.OUT_OF_REACH if self.visit is None else Sharing.MAPPED

    async def meet(self, name: str) -> None:
        """Hear the name of the replica's socket, "" for none; another one than before says that it is a new process.

        Hearing it again is an occasion to connect again, where the connection was lost or did not come about.
        """
        if not self._wants_memory or (name == self._name and not self._should_try_again()):
            return
        num_failures = self._num_failures if name == self._name else 0
        self.leave()
        self._name, self._num_failures, self._tried_at = name, num_failures, self._clock()
        if name:
            await self._try(name)

    def leave(self) -> None:
        """Let go, until a name is heard again."""
        if self.visit is not None:
            self.visit.close()
        self.visit, self._name = None, ""

    def _should_try_again(self) -> bool:
        if self.visit is not None:
            return self.visit.is_over
        pause = 0.0 if self._num_failures < _TRIES_IN_A_ROW else _PAUSE
        return bool(self._name) and self._clock() - self._tried_at >= pause

    async def _try(self, name: str) -> None:
        try:
            visit = await ArenaVisit.open(name)
        except (OSError, ValueError) as error:
            if self._name == name:
                self._failed(error)
            return
        if self._name != name:
            visit.close()
            return
        if self._num_failures >= _TRIES_IN_A_ROW:
            _log.info("shared memory is in reach again", extra={"address": self._address})
        self.visit, self._num_failures = visit, 0

    def _failed(self, error: Exception) -> None:
        self._num_failures += 1
        if self._num_failures == _TRIES_IN_A_ROW:
            extra = {"address": self._address, "reason": repr(error), "retry_seconds": _PAUSE}
            _log.warning("shared memory is out of reach; features come over the network", extra=extra)
