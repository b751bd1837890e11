"""Records work on the device once, so that it can be run again at the cost of one launch.

Knows CUDA graphs. Does not know what is recorded. What is recorded reads and writes the same memory at every run: the
caller keeps the tensors that go in and come out, and fills the ones before it runs the others.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        except Exception:  # Torch's errors, Triton's, and those of whatever else computes.
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
        # One for all, as what libraries set up for a stream, such as 32 MiB for products, they keep for good; and in
        # the pool, where it would be set up while recording, it would keep the pool from being used again.
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Run) -> Run:
        """See `GraphRecorder`. Raises torch.AcceleratorError or torch.OutOfMemoryError where it cannot be recorded."""
        # Streams belong to the device that is the thread's own, and what runs on another is not recorded. A recording
        # that fails leaves its stream the thread's own, so that the one before is noted here.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            # Kernels are compiled and libraries set up at their first use, which cannot be recorded.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                work()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # What other threads do meanwhile, the other half of one process say, must not end the recording.
            capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
            with _nothing_cleared_away(), capture:
                work()
        return graph.replay


@contextmanager
def _nothing_cleared_away() -> Iterator[None]:
    """Keep Python from collecting cycles of references: freeing device memory that they hold would be recorded."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
