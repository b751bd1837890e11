"""An error of the device says what it is, and holds nothing of the try that failed."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.device_errors import DeviceLostError, DeviceMemoryError
from decoder_service.engine.step import BlockCopy, Launched, ScheduledBatch, StepResult
from decoder_service.model.device_guard import GuardedRunner
from decoder_service.model.step_queue import AtOnce, OnThread, StepQueue


class Failing:
    """A runner that makes a tensor and fails."""

    def __init__(self, error: Exception, queue: StepQueue) -> None:
        self.tensor: Callable[[], object] = lambda: None
        """The tensor, as long as anybody holds it."""
        self._error = error
        self._queue = queue

    def execute(self, batch: ScheduledBatch) -> StepResult:
        activations = torch.zeros(8)
        self.tensor = weakref.ref(activations)
        raise self._error

    def launch(self, batch: ScheduledBatch, after: Launched | None = None) -> Launched:
        future = self._queue.put(partial(self.execute, batch))
        return Launched(future.result, future)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        raise self._error

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        raise self._error


CALLS: dict[str, Callable[[GuardedRunner], object]] = {
    "execute": lambda runner: runner.execute(ScheduledBatch(())),
    "launch": lambda runner: runner.launch(ScheduledBatch(())).result(),
    "copy": lambda runner: runner.copy(()),
    "clear": lambda runner: runner.clear(()),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), DeviceMemoryError),
        (MemoryError(), DeviceMemoryError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLostError),
        (RuntimeError("shapes do not fit"), RuntimeError),
        (ValueError("a fault of the batch"), ValueError),
    ],
)
def test_an_error_is_told_as_what_it_is(name: str, error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        CALLS[name](GuardedRunner(Failing(error, AtOnce())))
    assert caught.type is kind


@pytest.mark.parametrize("make_queue", [AtOnce, OnThread])
@pytest.mark.parametrize("name", ["execute", "launch"])
def test_what_the_failed_try_computed_is_gone_though_its_error_is_still_there(
    name: str, make_queue: type[AtOnce] | type[OnThread]
) -> None:
    """Its parts are run while the error is kept, and need the memory."""
    runner = Failing(torch.OutOfMemoryError("CUDA out of memory"), make_queue())
    with pytest.raises(DeviceMemoryError) as caught:
        CALLS[name](GuardedRunner(runner))
    assert caught.value.__cause__ is not None
    assert runner.tensor() is None
