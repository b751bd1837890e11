"""Times work on the device, and notes moments of it."""

import statistics
import time
from collections.abc import Callable

import torch

_AHEAD_CYCLES = 2_000_000
"""About a millisecond"""


def seconds(work: Callable[[], object], *, repeats: int = 20, is_ahead: bool = False) -> float:
    """Median seconds of one run of `work` on the current stream, by the device's own clock.

    Where the host `is_ahead`, the device is kept busy until it was given all of the work, and no time in which it would
    wait for the host is counted.
    """
    for _ in range(3):
        work()
    times: list[float] = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if is_ahead:
            torch.cuda._sleep(_AHEAD_CYCLES)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return statistics.median(times)


class Marks:
    """Moments of a device, noted without waiting for it; on a CPU of the host."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._moments: list[float] = []

    def note(self) -> None:
        """The moment at which all that the current stream was given is done."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of every moment but the first, how long it was after that; waits for the last."""
        if self._is_cuda:
            self._events[-1].synchronize()
            return [self._events[0].elapsed_time(event) / 1000 for event in self._events[1:]]
        return [moment - self._moments[0] for moment in self._moments[1:]]
