"""What the device can do at best (case G0): the limits that everything else is held against."""

from dataclasses import dataclass

import torch

from benchmarks.gpu.clock import seconds

_GIB = 2**30
_SPIN_UPS = 200
"""Products, some 0.3 s of them, in which an idle device reaches its clocks"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Measured limits of one device."""

    copy_bytes: float
    """Bytes a second of a copy, read and written bytes both counted"""
    read_bytes: float
    """Bytes a second of a sum or a maximum, whichever is faster; both only read"""
    flops: float
    """Operations a second of an 8192 x 8192 x 8192 product in bfloat16"""

    @property
    def memory_bytes(self) -> float:
        """The better of the two memory figures."""
        return max(self.copy_bytes, self.read_bytes)


def measure(device: torch.device) -> Ceilings:
    """Measure a device for a few seconds; takes 8 GiB of its memory."""
    source = torch.randn(_GIB, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(_SPIN_UPS):
        a @ b
    num_bytes = source.numel() * source.element_size()
    # Any limit that is too low would make shares of it too high, so that it is what does best.
    reads = (lambda: source.view(torch.int64).max(), lambda: source.view(torch.float32).sum())
    return Ceilings(
        copy_bytes=2 * num_bytes / seconds(lambda: target.copy_(source)),
        read_bytes=num_bytes / min(map(seconds, reads)),
        flops=2 * 8192**3 / seconds(lambda: a @ b),
    )
