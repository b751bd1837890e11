"""Counts calls, where time would say as much and less surely."""

import gc
import sys
from collections.abc import Callable
from types import FrameType


def num_calls(work: Callable[[], object]) -> int:
    """Functions that some work calls and returns from, of Python and of C."""
    count = 0

    def on_event(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal count
        count += 1

    gc.disable()  # Its callbacks would be counted.
    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count
