"""When the things happened that a completion's time is divided by.

Knows moments, in seconds of the monotonic clock. Does not know who tells them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that a completion spent, without overlap: they add up to its time in the engine."""

    queue: float
    """Waiting for the first step that worked on it, but not for images."""
    encode_wait: float
    """Waiting for the features of the first image that had to be fetched, until then or until it was worked on."""
    prefill: float
    """From its first step to its first token."""
    decode: float
    """From its first token to its last."""


class Stopwatch:
    """The moments of one request; its completions share all but their tokens'."""

    def __init__(self, *, now: float, n: int) -> None:
        """Begin when the request is submitted."""
        self.submitted_at = self._features_at = self._scheduled_at = now
        self._is_scheduled = False
        self._first_token_at: list[float | None] = [None] * n
        self._last_token_at = [now] * n

    def features_arrived(self, at: float) -> None:
        """The first image that had to be fetched is here."""
        if not self._is_scheduled:
            self._features_at = at

    def scheduled(self, at: float) -> None:
        """The first step that worked on it began."""
        self._is_scheduled = True
        self._scheduled_at = at
        self._features_at = min(self._features_at, at)

    def token(self, index: int, at: float) -> float | None:
        """A completion got a token; returns the seconds since the one before it, if there was one."""
        last, self._last_token_at[index] = self._last_token_at[index], at
        if self._first_token_at[index] is None:
            self._first_token_at[index] = at
            return None
        return at - last

    def timings(self, index: int) -> Timings:
        """Where a completion's time went; complete once its last token is out."""
        last = self._last_token_at[index]
        first = self._first_token_at[index] or last
        return Timings(
            queue=self._scheduled_at - self._features_at,
            encode_wait=self._features_at - self.submitted_at,
            prefill=first - self._scheduled_at,
            decode=last - first,
        )
