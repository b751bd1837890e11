"""What an engine made of a workload: tokens, and when each came.

Knows numbers. Does not know engines, nor what was asked.
"""

from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Tokens of every request, in the order in which they were asked."""

    tokens: list[list[int]]
    times: list[list[float]]
    """Seconds from the start at which each token was there; fewer than tokens where an engine forgot some."""
    seconds: float
    """Until the last token, or until the engine was stopped."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all requests."""
        return sum(map(len, self.tokens))

    def decode_rate(self) -> float:
        """Tokens a second while all requests are decoded: from when each has an eighth of its own until one has all.

        By then also those run evenly that record or compile their first steps. Raises ValueError where there is no
        such time.
        """
        if not all(self.times):
            raise ValueError("a request has no tokens")
        first = max(times[len(times) // 8] for times in self.times)
        last = min(times[-1] for times in self.times)
        if last <= first:
            raise ValueError("the first request ended before the last one began")
        return sum(1 for time in chain(*self.times) if first < time <= last) / (last - first)

    def seconds_until(self, num_tokens: int) -> float:
        """When so many tokens were there, of all requests together. Raises ValueError where they never were."""
        times = sorted(chain(*self.times))
        if not 0 < num_tokens <= len(times):
            raise ValueError(f"{len(times)} tokens were timed, and not {num_tokens}")
        return times[num_tokens - 1]
