"""Carries numbers and rows between the host and the device without waiting for the device.

Knows memory that the device copies by itself (pinned), and when such a copy is over. Does not know what the numbers
are. A copy from or to any other memory of the host, and so the host, waits for all work that the device was given.
"""

from array import array
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from common.model.devices import Mark, mark_for, wait_for_nothing

NUM_SLOTS = 4
"""Two steps are under way at most, and each brings the device two lots of numbers."""
_FIRST_SIZE = 1 << 14
"""Numbers that a slot has room for at first; a prompt of some thousand tokens makes it grow."""
_DTYPES = {"q": torch.int64, "d": torch.float64}


class Staging(Protocol):
    """Carries numbers between the host and one device."""

    def move(self, numbers: "array[int] | array[float]") -> Tensor:
        """The numbers, of type "q" or "d", on the device, as int64 or float64; they are the tensor's from now on."""
        ...

    def carry(self, rows: Tensor) -> Tensor:
        """Rows of the host's memory on the device; where that is another one, they may be overwritten from now on."""
        ...

    def read(self, tensor: Tensor) -> Callable[[], list[int]]:
        """Begin to bring an int64 tensor [count] to the host; what it returns waits for it, and is called once."""
        ...


class HostStaging:
    """Where the device is the host, nothing needs to be carried."""

    def move(self, numbers: "array[int] | array[float]") -> Tensor:
        """See `Staging`."""
        return torch.frombuffer(numbers, dtype=_DTYPES[numbers.typecode])

    def carry(self, rows: Tensor) -> Tensor:
        """See `Staging`."""
        return rows

    def read(self, tensor: Tensor) -> Callable[[], list[int]]:
        """See `Staging`."""
        return tensor.tolist


class PinnedStaging:
    """For a device with memory of its own: pinned memory, taken once and used again and again."""

    def __init__(self, device: torch.device, mark: Mark) -> None:
        self._device = device
        self._mark = mark
        self._slots = [_Slot(self._new(_FIRST_SIZE)) for _ in range(NUM_SLOTS)]
        self._num_moves = 0
        self._unused: list[Tensor] = []
        """Memory for what comes back; each piece is used by one `read` at a time."""

    def move(self, numbers: "array[int] | array[float]") -> Tensor:
        """See `Staging`."""
        slot = self._slots[self._num_moves % NUM_SLOTS]
        self._num_moves += 1
        slot.wait()  # Else the copy under way could carry the new numbers.
        if len(numbers) > len(slot.memory):
            slot.memory = self._new(2 * len(numbers))
        given = torch.frombuffer(numbers, dtype=_DTYPES[numbers.typecode])
        staged = slot.memory[: len(numbers)].view(given.dtype)
        staged.copy_(given)
        moved = staged.to(self._device, non_blocking=True, copy=True)
        slot.wait = self._mark()
        return moved

    def carry(self, rows: Tensor) -> Tensor:
        """See `Staging`."""
        # Not through the slots: pictures' rows come seldom and are megabytes. Torch keeps such memory for the next
        # ones, and gives it to nobody before the device has read it.
        staged = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=self._device.type == "cuda").copy_(rows)
        return staged.to(self._device, non_blocking=True)

    def read(self, tensor: Tensor) -> Callable[[], list[int]]:
        """See `Staging`."""
        memory = self._unused.pop() if self._unused else self._new(0)
        if len(memory) < len(tensor):
            memory = self._new(2 * len(tensor))
        memory[: len(tensor)].copy_(tensor, non_blocking=True)
        wait, count = self._mark(), len(tensor)

        def numbers() -> list[int]:
            wait()
            found: list[int] = memory[:count].tolist()
            self._unused.append(memory)
            return found

        return numbers

    def _new(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, pin_memory=self._device.type == "cuda")


class _Slot:
    """Memory that numbers are moved from."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.wait: Callable[[], None] = wait_for_nothing
        """Waits until what was put here last is on the device."""


def staging_for(device: torch.device) -> Staging:
    """What carries numbers to and from a device."""
    return PinnedStaging(device, mark_for(device)) if device.type == "cuda" else HostStaging()
