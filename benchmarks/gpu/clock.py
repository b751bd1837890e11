"""Times work on the device, and says what share of a limit that is."""

import statistics
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], *, repeats: int = 20, warm_ups: int = 3) -> float:
    """Median seconds of one run of `work` on the current stream, by the device's own clock."""
    for _ in range(warm_ups):
        work()
    times: list[float] = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return statistics.median(times)
