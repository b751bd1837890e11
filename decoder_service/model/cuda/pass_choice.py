"""Chooses between two recorded passes that compute the same, by measuring both on the device.

Knows what a pass writes and how long it takes. Does not know what computes it. Whether a product of ours or torch's
reads weights faster depends on the device, the widths and the libraries, and an answer costs a few milliseconds.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.graph_recorder import Recorded, Run

_log = logging.getLogger(__name__)

Clock = Callable[[Run], float]
"""Seconds that recorded work takes on its device."""
_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Another way to compute a pass."""

    record: Callable[[], Recorded]
    """Records it; what it raises, it is left out for"""
    fill: Run
    """Puts the same numbers into what both passes read, and which a pass may overwrite"""
    clock: Clock
    """Asked for this way first, then for the usual one"""
    limit: float
    """Longest distance between two rows that are to be the same, over the length of one"""


def faster(usual: Recorded, challenge: Challenge) -> tuple[Recorded, dict[str, float]]:
    """The faster one of the usual pass and a challenge, unless that computes something else; and what was measured."""
    try:
        other = challenge.record()
        rows = [_rows(each, challenge.fill) for each in (usual, other)]
        distance = ((rows[0] - rows[1]).norm(dim=1) / rows[0].norm(dim=1)).max().item()
        seconds, usual_seconds = challenge.clock(other.run), challenge.clock(usual.run)
    except Exception:  # Torch's errors, Triton's, and those of whatever else computes.
        _log.warning("a second way to compute a pass cannot be had", exc_info=True)
        return usual, {}
    found = {"ms": seconds * 1e3, "usual_ms": usual_seconds * 1e3, "distance": distance}
    if not distance <= challenge.limit:
        _log.warning("a second way to compute a pass gives something else", extra=found)
        return usual, found
    _log.info("two ways to compute a pass", extra=found)
    return (other if seconds < usual_seconds else usual), found


def _rows(recorded: Recorded, fill: Run) -> Tensor:
    fill()
    recorded.run()
    return recorded.out.float().clone()


def device_clock(device: torch.device) -> Clock:
    """The clock of a CUDA device: the least seconds of a few runs, the first ones not counted."""

    def measure(run: Run) -> float:
        run()
        times: list[float] = []
        for _ in range(_REPEATS):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(torch.cuda.current_stream(device))
            run()
            stop.record(torch.cuda.current_stream(device))
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        return min(times)

    return measure
