"""Tells a runner's errors apart: no memory, a device that is gone, or a fault of the batch.

Knows what torch raises. Does not know batches (see `containment`).

After an illegal access, a failed assertion in a kernel or a memory fault CUDA refuses every further call of the
process, whatever it is: such an error is sticky, and only a new process helps.
"""

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch

from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.device_errors import DeviceLostError, DeviceMemoryError
from decoder_service.engine.step import BlockCopy, Launched, Launcher, Runner, ScheduledBatch, StepResult

Result = TypeVar("Result")

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
_LOST = (
    "cuda error",
    "device-side assert",
    "hip error",
    "cudnn_status_execution_failed",
    "cublas_status_execution_failed",
)


class LaunchingRunner(Runner, Launcher, Protocol):
    """A runner that can also begin a step and let it run."""


class GuardedRunner:
    """A runner whose errors say what they are."""

    def __init__(self, runner: LaunchingRunner) -> None:
        self._runner = runner

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy blocks. Raises DeviceMemoryError or DeviceLostError."""
        _guarded(partial(self._runner.copy, copies))

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Compute a batch. Raises DeviceMemoryError, DeviceLostError, or whatever the batch is at fault for."""
        return _guarded(partial(self._runner.execute, batch))

    def launch(self, batch: ScheduledBatch, after: Launched | None = None) -> Launched:
        """Begin to compute a batch; its result raises as `execute` does."""
        launched = _guarded(partial(self._runner.launch, batch, after))
        return Launched(partial(_guarded, launched.result), launched.tokens)

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        """Clear blocks. Raises DeviceMemoryError or DeviceLostError."""
        _guarded(partial(self._runner.clear, block_ids))


def _guarded(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        _tell_apart(error)
        raise


def _tell_apart(error: RuntimeError | MemoryError) -> None:
    """Raises DeviceMemoryError or DeviceLostError in place of an error of the device that says so."""
    # Its frames still hold the tensors of this try, in whose memory a part of the batch is to be run.
    traceback.clear_frames(error.__traceback__)
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in _NO_MEMORY):
        if torch.cuda.is_available():
            # What is cached for other sizes may be what this one lacks.
            torch.cuda.empty_cache()
        raise DeviceMemoryError("the device has no memory for this batch") from error
    if any(words in text for words in _LOST):
        raise DeviceLostError("the device computes nothing any more") from error
