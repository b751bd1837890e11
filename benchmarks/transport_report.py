"""What was found of transfers, round by round, as a table for each state that the machine was in.

Knows names and speeds. Does not know how they are measured. Where the host moves its guest's processors about in the
middle of a run, a median over all rounds is one of nothing.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

_CLEARLY = 1.5
"""How many times as fast the next state is, at least."""
_FEW = 3
"""Rounds that a state must have been in to be told of."""
GOAL = 0.8


def states(handovers: Sequence[float]) -> list[list[int]]:
    """The rounds of each state, by how fast one core read what another wrote; the slowest state first."""
    order = sorted(range(len(handovers)), key=handovers.__getitem__)
    found = [order[:1]]
    for before, after in pairwise(order):
        if handovers[after] > _CLEARLY * handovers[before]:
            found.append([])
        found[-1].append(after)
    return [rounds for rounds in found if len(rounds) >= _FEW] or [order]


def report(megabytes: int, handovers: Sequence[float], found: Mapping[str, Sequence[float]]) -> bool:
    """Print a table for each state; returns whether "service" reaches the goal in all of them.

    `handovers` are gigabytes a second, `found` megabytes a second of each kind of transfer; "bare..." are the measure.
    """
    reached = True
    for rounds in states(handovers):
        from_core = statistics.median(handovers[index] for index in rounds)
        print(
            f"{megabytes:3} MB  {len(rounds)} rounds in which one core read {from_core:.0f} GB/s of what another wrote"
        )
        speeds = {name: [all_rounds[index] for index in rounds] for name, all_rounds in found.items()}
        medians = {name: statistics.median(each) for name, each in speeds.items()}
        best = max(value for name, value in medians.items() if name.startswith("bare"))
        for name, value in medians.items():
            low, high = min(speeds[name]), max(speeds[name])
            print(f"{megabytes:3} MB  {name:28} {value:7.0f} MB/s  ({low:.0f} to {high:.0f})  {value / best:5.0%}")
        reached &= medians["service"] >= GOAL * best
    return reached
