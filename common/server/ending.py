"""Ends a process that can no longer serve, so that it is replaced.

Knows health and the signal that stops a server. Does not know what failed.
"""

import asyncio
import logging
import signal

from common.server.server import GrpcServer

_log = logging.getLogger(__name__)


class Ending:
    """Whether a server ends because something failed."""

    def __init__(self, server: GrpcServer, service_name: str) -> None:
        self._server = server
        self._service_name = service_name
        self.has_failed = False
        """Whether the process should exit with another status than 0."""

    def give_up(self) -> None:
        """Say that nothing is served any more, and stop."""
        self.has_failed = True
        self._server.set_serving([self._service_name], serving=False)
        self._server.set_alive(False)
        signal.raise_signal(signal.SIGTERM)

    def task_ended(self, task: asyncio.Task[None]) -> None:
        """Give up where a task raised that nobody waits for; to be called when it is done."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("a part of the service failed; stopping", exc_info=error)
            self.give_up()
