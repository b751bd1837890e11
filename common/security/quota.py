"""What one caller may use: calls at once, calls in a minute, tokens in a minute.

Knows numbers and a clock that is handed in. Does not know who the caller is. An allowance per minute fills evenly
and holds one minute's worth, so a caller who was quiet may use it all at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from common.errors import ResourceExhaustedError

_OPEN_RETRY_SECONDS = 1.0


class Limits(NamedTuple):
    """Limits of one caller; None for none."""

    max_open_calls: int | None = None
    calls_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Quota:
    """One caller's use of its limits."""

    def __init__(self, limits: Limits, *, now: float) -> None:
        self.limits = limits
        self._num_open = 0
        self._calls = _Allowance(limits.calls_per_minute, now)
        self._tokens = _Allowance(limits.tokens_per_minute, now)

    @contextmanager
    def call(self, *, now: float) -> Iterator[None]:
        """Count one call. Raises ResourceExhaustedError, with the time to come back after, where there is no room."""
        limit = self.limits.max_open_calls
        if limit is not None and self._num_open >= limit:
            raise _refusal("CALLER_OPEN_CALLS", "at once", limit, _OPEN_RETRY_SECONDS)
        for reason, words, allowance in (
            ("CALLER_CALLS_PER_MINUTE", "calls in a minute", self._calls),
            ("CALLER_TOKENS_PER_MINUTE", "tokens in a minute", self._tokens),
        ):
            wait = allowance.wait(now)
            if wait > 0:
                raise _refusal(reason, words, allowance.per_minute or 0, wait)
        self._calls.use(1, now)
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    def use_tokens(self, count: int, *, now: float) -> None:
        """Count tokens that were used. Never refuses: what is too much delays the next call."""
        self._tokens.use(count, now)

    def is_idle(self, *, now: float) -> bool:
        """Whether nothing would change if the caller were forgotten."""
        return not self._num_open and self._calls.is_full(now) and self._tokens.is_full(now)


class _Allowance:
    """What is left of a minute's worth; may fall below zero."""

    def __init__(self, per_minute: int | None, now: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute or 0)
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds until one unit is there."""
        if self.per_minute is None:
            return 0.0
        self._fill(now)
        return max(0.0, (1 - self._left) * 60 / self.per_minute)

    def use(self, count: int, now: float) -> None:
        if self.per_minute is not None:
            self._fill(now)
            self._left -= count

    def is_full(self, now: float) -> bool:
        self._fill(now)
        return self._left >= (self.per_minute or 0)

    def _fill(self, now: float) -> None:
        per_minute = self.per_minute or 0
        self._left = min(float(per_minute), self._left + max(0.0, now - self._at) * per_minute / 60)
        self._at = now


def _refusal(reason: str, words: str, limit: int, retry_after: float) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        reason, f"this caller may have {limit} {words}", metadata={"limit": limit}, retry_after=retry_after
    )
