"""How many tries beyond the first one are allowed, so that retries cannot multiply the load of a fleet in trouble.

Knows counts and time, as its caller tells them. A bucket of tokens: each call puts a part of one in, each try
beyond a call's first takes a whole one out, and some come back with time, for callers that call seldom.
"""

_PER_CALL = 0.2
_PER_SECOND = 1.0
_MOST = 128.0
"""Also what there is at the start: as many images as may be on their way to a replica that dies."""


class RetryBudget:
    """A token bucket."""

    def __init__(self, *, now: float) -> None:
        self._tokens = _MOST
        self._at = now

    def called(self, *, now: float) -> None:
        """Hear of a call's first try."""
        self._fill(_PER_CALL, now)

    def take(self, *, now: float) -> bool:
        """Whether one more try is allowed, which then counts as made."""
        self._fill(0.0, now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _fill(self, tokens: float, now: float) -> None:
        self._tokens = min(_MOST, self._tokens + tokens + (now - self._at) * _PER_SECOND)
        self._at = now
