"""Where a request is, and why it ended.

Knows the words alone.
"""

from enum import Enum


class RequestStatus(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"
    """An end or stop token, or, by the servicer, a stop text."""
    LENGTH = "length"
    """`max_tokens` were generated."""
