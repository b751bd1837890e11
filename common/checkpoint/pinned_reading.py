"""Reads tensors from their files onto a device while what was read before is on its way there.

Uses pinned memory, from which the device copies by itself. It is allocated once and filled again and again: ordinary
memory of the host would be copied twice, and nothing could be read meanwhile. Does not know which tensors there are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.checkpoint.safetensors_file import StoredTensor
from common.model.devices import Mark, wait_for_nothing

PIECE_BYTES = 32 << 20
"""Read at once; so much takes many times as long as a system call and is little beside the weights."""
_NUM_PIECES = 2


class PinnedReader:
    """Reads onto one device; not for several threads at once."""

    def __init__(self, device: torch.device, mark: Mark, *, piece_bytes: int = PIECE_BYTES) -> None:
        """Take the pinned memory."""
        self._device = device
        self._mark = mark
        is_pinned = device.type == "cuda"
        self._pieces = [
            _Piece(torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=is_pinned)) for _ in range(_NUM_PIECES)
        ]
        self._num_read = 0

    def read(self, stored: StoredTensor) -> Tensor:
        """The values, on the device; they are there for whatever its current stream is given next.

        Raises CheckpointError.
        """
        target = torch.empty(stored.num_bytes, dtype=torch.uint8, device=self._device)
        for part in target.split(len(self._pieces[0].memory)):
            piece = self._pieces[self._num_read % _NUM_PIECES]
            self._num_read += 1
            piece.wait()  # Else the copy under way could carry the bytes that are read now.
            memory = piece.memory[: len(part)]
            stored.read_into(memory.numpy().data, part.storage_offset())
            part.copy_(memory, non_blocking=True)
            piece.wait = self._mark()
        return target.view(stored.dtype).view(stored.shape)


class _Piece:
    """Memory that is read into."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.wait: Callable[[], None] = wait_for_nothing
        """Waits until what was read last is on the device."""
