"""Refuses what nobody has room for before it is received.

Knows the calls that need a place, and how a refusal is told. Does not know what is asked for: a queue that is full is
full for every request, so nothing of it is read, and a burst costs those that run as little as it can.
"""

from typing import Final

from decoder_service.engine.admission import Admission
from decoder_service.telemetry.request_metrics import RequestMetrics
from decoder_service.telemetry.request_watch import watching

_GENERATE: Final = "/diptych.v1.GenerationService/Generate"
_TOKENIZE: Final = "/diptych.v1.GenerationService/Tokenize"


class Doorkeeper:
    """Asks the admission before each call."""

    def __init__(self, admission: Admission, metrics: RequestMetrics) -> None:
        self._admission = admission
        self._metrics = metrics

    def check(self, path: str) -> None:
        """Raise ResourceExhaustedError QUEUE_FULL for a call that needs a place where there is none."""
        if path == _GENERATE:
            with watching(self._metrics):
                self._admission.check_open()
        elif path == _TOKENIZE:
            self._admission.check_open()
