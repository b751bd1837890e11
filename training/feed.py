"""Batches made ahead of their use, in a process of their own beside the one that trains.

Knows the order of steps. Does not know what a batch holds; see `batches`.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from training.batches import Batch, ChatLayout, training_batch

_AHEAD = 24


class _Maker:
    """What the worker process keeps between batches."""

    layout: ChatLayout


def batches(tekken: Path, *, seed: int, first_step: int, ramp: int, cpu: int | None) -> Iterator[Batch]:
    """The batches of `first_step`, the next, and so on without end; `cpu` pins the worker."""
    with ProcessPoolExecutor(1, initializer=_start, initargs=(tekken, cpu)) as pool:
        waiting: deque[Future[Batch]] = deque()
        step = first_step
        while True:
            while len(waiting) < _AHEAD:
                waiting.append(pool.submit(_make, seed, step, ramp))
                step += 1
            yield waiting.popleft().result()


def _start(tekken: Path, cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    _Maker.layout = ChatLayout(tekken)


def _make(seed: int, step: int, ramp: int) -> Batch:
    return training_batch(_Maker.layout, seed, step, ramp)
