"""Records work on the device once, so that it can be run again at the cost of one launch.

Knows CUDA graphs. Does not know what is recorded. What is recorded reads and writes the same memory at every run: the
caller keeps the tensors that go in and come out, and fills the ones before it runs the others.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

Run = Callable[[], None]
"""Does the recorded work on what is in its tensors now."""


class GraphRecorder(Protocol):
    """Turns work with fixed tensors into something that is run again."""

    def record(self, work: Run) -> Run:
        """Record `work`, which must not wait for the device, and return what does it again."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded pass."""

    run: Run
    out: Tensor
    """What it writes, anew at every run"""


def record_sizes(
    recorder: GraphRecorder, sizes: Sequence[int], make_work: Callable[[int], tuple[Run, Tensor]]
) -> dict[int, Recorded]:
    """Record a pass for each size, the largest first, so that the others fit into the memory that it took.

    `make_work` gives, just before a size is recorded, the work and what it writes. A size that cannot be recorded, and
    all below it, are left out, with a warning.
    """
    recorded: dict[int, Recorded] = {}
    for size in sorted(sizes, reverse=True):
        try:
            work, out = make_work(size)
            recorded[size] = Recorded(recorder.record(work), out)
        except RuntimeError:
            _log.warning("passes run unrecorded", extra={"size": size}, exc_info=True)
            break
    return recorded


class CudaGraphRecorder:
    """Records CUDA graphs that share one pool of memory: no two of them run at the same time.

    Record the one that needs most memory first, and the others will fit into what it took.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Run) -> Run:
        """See `GraphRecorder`. Raises torch.AcceleratorError or torch.OutOfMemoryError where it cannot be recorded."""
        # Streams belong to the device that is the thread's own, and what runs on another is not recorded.
        with torch.cuda.device(self._device):
            # Kernels are compiled and libraries set up at their first use, which cannot be recorded.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                work()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                work()
        return graph.replay
