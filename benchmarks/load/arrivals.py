"""When the requests of an open loop are sent.

Knows random gaps. As in vLLM's serving benchmark, gaps are drawn from a gamma distribution of shape `burstiness` and
mean 1 / rate, and the whole is then scaled so that the last one is sent at count / rate: at burstiness 1 arrivals are
Poisson's, below it they come in bursts, above it they are more even.
"""

import itertools
import math
import random


def arrival_times(count: int, *, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds after the start at which each request is sent, rising; all at once at an infinite rate."""
    if rate <= 0 or burstiness <= 0:
        raise ValueError("rate and burstiness must be over 0")
    if math.isinf(rate):
        return [0.0] * count
    generator = random.Random(seed)  # noqa: S311 - no secret
    gaps = [generator.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in range(count)]
    times = list(itertools.accumulate(gaps))
    scale = count / rate / times[-1] if times and times[-1] > 0 else 1.0
    return [time * scale for time in times]
