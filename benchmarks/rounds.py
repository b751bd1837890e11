"""What measurements of several systems in turns have in common: who comes when, and how two are held side by side.

Knows numbers. Does not know systems.
"""

from collections.abc import Sequence
from typing import TypeVar

from benchmarks.statistics import percentile

System = TypeVar("System")


def in_turn(systems: Sequence[System], number: int) -> list[System]:
    """All of them as they come in the round of this number: each round begins with another."""
    first = number % len(systems)
    return [*systems[first:], *systems[:first]]


def median_ratio(ours: Sequence[float], its: Sequence[float]) -> float:
    """Median of the rounds' ratios, ours over its."""
    return percentile([mine / other for mine, other in zip(ours, its, strict=True)], 50)
