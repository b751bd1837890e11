"""Attention inside each of several packed pictures whose lengths stand in a tensor on the device.

Knows tensors. A pass that is recorded once and run again on other pictures cannot depend on what the host knew when it
was recorded, and a pack of many sizes needs one launch a layer instead of one for each size.
"""

from typing import Protocol

import torch
from torch import Tensor

_FIRST_CAPABILITY = (8, 0)
"""The oldest GPUs that FlashAttention runs on."""


class SegmentAttention(Protocol):
    """Attention in which a row sees the rows of its own segment and no others.

    Takes query, key and value [num_rows, num_heads, head_dim] and `starts` [num_segments + 1], int32 and on the same
    device, which begins with 0, never falls and ends with num_rows; segments may be empty. `longest` bounds their
    lengths and must be known beforehand. Returns the query's shape.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, starts: Tensor, longest: int, scale: float
    ) -> Tensor:
        """Return the attention output for every row, without waiting for the device."""
        ...


def choose_segment_attention(device: torch.device, dtype: torch.dtype) -> SegmentAttention | None:
    """What this device can do with this type; None where there is nothing better than one launch a size."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return flash_attention if torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY else None


def flash_attention(query: Tensor, key: Tensor, value: Tensor, *, starts: Tensor, longest: int, scale: float) -> Tensor:
    """`SegmentAttention` by the FlashAttention that comes with torch (Dao, arXiv 2307.08691)."""
    # Imported here: it brings much of torch with it that a CPU has no use for.
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(query, key, value, starts, starts, longest, longest, scale=scale)
    if not isinstance(out, Tensor):
        raise TypeError("attention alone was asked for")
    return out
