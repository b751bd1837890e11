"""An engine's turn in a round: what it did in so much time, and what that cost.

Knows an engine's process. Does not know what it is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers.protocol import Worker

_SECONDS = 0.5
"""Short work is repeated until so much time is measured: processor time is counted in hundredths of a second."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one engine did in one round."""

    rate: float
    """Tokens or items a second."""
    cost: float
    """Processor seconds of the whole process tree for 1,000 of them."""


def take_turn(worker: Worker, work: Callable[[int], tuple[int, float]]) -> Turn:
    """Work with the numbers 0, 1, ... until the turn is over; it returns how many items in how many seconds."""
    before, seconds, count, repeat = worker.processor_seconds(), 0.0, 0, 0
    while seconds < _SECONDS:
        more, took = work(repeat)
        count, seconds, repeat = count + more, seconds + took, repeat + 1
    return Turn(rate=count / seconds, cost=(worker.processor_seconds() - before) * 1000 / count)
