"""Refuses what nobody has room for before it is received.

Knows the calls that need a place, and how a refusal is told. Does not know what is asked for: a queue that is full is
full for every request, so nothing of it is read, and a burst costs those that run as little as it can.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from common.errors import ResourceExhaustedError
from common.security.principal import current_principal
from common.security.refusal_log import RefusalLog
from decoder_service.engine.admission import Admission
from decoder_service.telemetry.request_metrics import RequestMetrics

_GENERATE: Final = "/diptych.v1.GenerationService/Generate"
_TOKENIZE: Final = "/diptych.v1.GenerationService/Tokenize"


class Doorkeeper:
    """Asks the admission before each call."""

    def __init__(
        self, admission: Admission, metrics: RequestMetrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._admission = admission
        self._metrics = metrics
        # A full queue is no attack and no fault: it is told at the level of the requests that end.
        self._refusals = RefusalLog(level=logging.INFO, clock=clock)

    def check(self, path: str) -> None:
        """Raise ResourceExhaustedError QUEUE_FULL for a call that needs a place where there is none."""
        if path not in (_GENERATE, _TOKENIZE):
            return
        try:
            self._admission.check_open()
        except ResourceExhaustedError as error:
            if path == _GENERATE:
                self._metrics.refused.count(error.reason)
            self._refusals.refused(path, error, caller=current_principal().name)
            raise
