"""Times an engine's steps without a model: what it costs on the host to say who computes what, and to account for it.

Knows clocks. Does not know engines: each says how so many requests begin to run, and what a step of theirs is. Runs in
the peers' environments too.
"""

import gc
import time
from collections.abc import Callable

BLOCK_SIZE = 16
MAX_REQUESTS, MAX_TOKENS = 256, 1024
"""What every engine has room for: so many requests, of so many tokens each with their prompts."""
TOKEN = 7
"""What every model says."""
WARM_UP = 16
"""Steps before the clock starts, behind those that compute the prompts."""
Step = Callable[[], int]
"""One step; returns how many tokens it gave."""
Begin = Callable[[int, int, int], Step]
"""Lets so many requests run, with so many tokens of prompt each, all computed, and of so many steps each."""


def time_steps(begin: Begin, *, running: int, context: int, steps: int, seconds: float) -> dict[str, object]:
    """Seconds and processor seconds of steps alone, and what they gave: begun anew until so much time is measured.

    So every engine's requests grow from the same length to the same length, and no other work is timed.
    """
    took, busy, num_steps, num_tokens = 0.0, 0.0, 0, 0
    while took < seconds:
        step = begin(running, context, WARM_UP + steps)
        for _ in range(WARM_UP):
            step()
        gc.collect()
        busy_before, began_at = time.process_time(), time.perf_counter()
        for _ in range(steps):
            num_tokens += step()
        took += time.perf_counter() - began_at
        busy += time.process_time() - busy_before
        num_steps += steps
    return {"seconds": took, "processor_seconds": busy, "steps": num_steps, "tokens": num_tokens}


def prompts(running: int, context: int, *, first: int) -> list[list[int]]:
    """Token ids of prompts that share no block; `first` numbers the first of them, among all that were ever made."""
    return [[100 + first + number, *range(100, 100 + context - 1)] for number in range(running)]
