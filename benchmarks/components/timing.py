"""How long one call takes: warmed, repeated, with its spread.

Knows clocks. Does not know what is called.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.statistics import Spread

Clock = Callable[[], float]
"""What works on one thread is measured in its processor time, which others on the machine hardly change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure of a component."""

    component: str
    at: str
    """What it depends on: `256 running`, `1024 x 1024`."""
    value: Spread
    unit: str
    parameter: float | None = None
    """The number in `at`, where there is one to draw against."""


def seconds_per_call(
    work: Callable[[], object], *, seconds: float, samples: int = 5, clock: Clock = time.thread_time
) -> Spread:
    """Seconds of one call: of several samples, each as many calls as fit into its share of the time."""
    work()
    started_at = clock()
    work()
    calls = max(1, int(seconds / samples / max(clock() - started_at, 1e-6)))
    return seconds_of_calls(work, calls=calls, samples=samples, clock=clock)


def seconds_of_calls(
    work: Callable[[], object], *, calls: int, samples: int = 5, clock: Clock = time.thread_time
) -> Spread:
    """Seconds of one call, of several samples of so many calls each."""
    found = []
    gc.collect()
    for _ in range(samples):
        started_at = clock()
        for _ in range(calls):
            work()
        found.append((clock() - started_at) / calls)
    return Spread.of(found)


def scaled(value: Spread, factor: float) -> Spread:
    """The spread in another unit."""
    return Spread(value.median * factor, value.lowest * factor, value.highest * factor)
