"""What the machine itself can do on given cores: memory read rate, matrix rate. An engine behind `protocol`.

Knows torch. Does not know models. Each figure is the best of several tries, as a limit should be.
"""

import os
import time
from collections.abc import Callable

import torch

from benchmarks.peers.protocol import serve

_TRIES = 4
_SECONDS = 0.1


def measure() -> dict[str, float]:
    """Bytes a second read by a matrix-vector product, and float operations a second."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return {
        "bytes_per_second": read_rate(rows=32768, columns=2048),
        "flops": matrix_rate(size=1536),
    }


def read_rate(*, rows: int, columns: int) -> float:
    """Bytes a second of weights that a product with one vector reads; the matrix must not fit into the caches."""
    weight = torch.ones(rows, columns)
    left, right = torch.ones(1, rows), torch.ones(columns)
    # Which of them is the fastest differs from machine to machine.
    ways: tuple[Callable[[], object], ...] = (lambda: left @ weight, lambda: weight @ right, lambda: weight.sum())
    return rows * columns * 4 / min(map(_best, ways))


def matrix_rate(*, size: int) -> float:
    """Float operations a second of a square product in float32."""
    left, right = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / _best(lambda: left @ right)


def _best(work: Callable[[], object]) -> float:
    """Fewest seconds of one call."""
    work()
    best = float("inf")
    for _ in range(_TRIES):
        started_at, calls = time.perf_counter(), 0
        while time.perf_counter() - started_at < _SECONDS:
            work()
            calls += 1
        best = min(best, (time.perf_counter() - started_at) / calls)
    return best


if __name__ == "__main__":
    serve({"measure": measure})
