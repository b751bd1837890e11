"""A histogram for what happens with every token.

Knows buckets and how many observations fell into each. Does not know threads: one observes, any other may read.
prometheus_client's own takes a lock and counts a bucket and a sum with several calls, ten times the time of
this one (docs/performance.md); everything that happens less often than a token uses that one.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally(Collector):
    """Observations by bucket; register it to have it exported."""

    def __init__(self, name: str, help_: str, *, bounds: Sequence[float]) -> None:
        """Take the upper bounds of the buckets, rising; the last bucket has none."""
        self._name = name
        self._help = help_
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Read everything once; the sum may be one observation ahead of the counts."""
        total, buckets = 0, []
        for bound, count in zip([*self._bounds, inf], list(self._counts), strict=True):
            total += count
            buckets.append(("+Inf" if bound == inf else repr(float(bound)), float(total)))
        yield HistogramMetricFamily(self._name, self._help, buckets=buckets, sum_value=self._sum)
