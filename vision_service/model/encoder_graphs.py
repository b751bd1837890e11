"""Passes of the encoder over packs of a few sizes, each recorded once.

Knows the tensors that a recorded pass reads and writes, and how a pack of pictures is filled up to the next recorded
size: with rows that are a segment of their own in attention, so that they change nothing of the others. Does not know
images or batches. Small packs are worth it: above some thousand patches the device, and not the host, is what is busy.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from common.model.graph_recorder import GraphRecorder, Run, record_sizes
from vision_service.model.encoder import PatchEncoder
from vision_service.model.segment_attention import SegmentAttention

_SIZES = (256, 512, 1024, 1536, 2048, 3072, 4096)
"""Patches; close together where a filled-up row costs most beside what the host takes."""
_MAX_PICTURES, _LEAST_MOST_PICTURES = 32, 4
_ROOM = 16384
"""Patches, counted once for each picture that there is room for"""


def most_pictures(size: int) -> int:
    """Pictures that a recorded pack of `size` patches has room for; one of more runs unrecorded.

    Attention has programs for as many rows as the pack, once for each picture that there is room for, and all but those
    of pictures that are there find nothing to do: of 4,096 rows and 32 pictures 16,384 a layer, for 512 that work. So
    large packs, whose device is busy enough without recording, have room for few.
    """
    return max(_LEAST_MOST_PICTURES, min(_MAX_PICTURES, _ROOM // size))


def pack_sizes(most: int) -> tuple[int, ...]:
    """Sizes to record where batches have up to `most` patches, rising."""
    return tuple(size for size in _SIZES if size <= most) or (most,)


class EncoderGraphs:
    """Recorded passes of the encoder; not for several threads at once."""

    def __init__(
        self,
        model: PatchEncoder,
        attention: SegmentAttention,
        recorder: GraphRecorder,
        *,
        sizes: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Record a pass for each of `sizes`, which rise, from the last to the first until one cannot be recorded."""
        config, most = model.config, sizes[-1]
        self._model = model
        self._attention = attention
        values = config.num_channels * config.patch_size**2
        self._patches = torch.zeros(most, values, device=device, dtype=dtype)
        self._rows = torch.zeros(most, device=device, dtype=torch.long)
        self._columns = torch.zeros(most, device=device, dtype=torch.long)
        self._starts = torch.zeros(_MAX_PICTURES + 2, device=device, dtype=torch.int32)
        self._recorded = record_sizes(recorder, sizes, self._make_work)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What was recorded, rising."""
        return tuple(sorted(self._recorded))

    def size_for(self, lengths: Sequence[int]) -> int | None:
        """The recorded size that a pack of pictures of so many patches is filled up to; None where there is none."""
        num_patches = sum(lengths)
        size = next((size for size in self.sizes if size >= num_patches), None)
        return size if size is not None and len(lengths) <= most_pictures(size) else None

    def features(self, patches: Tensor, rows: Tensor, columns: Tensor, *, lengths: Sequence[int], size: int) -> Tensor:
        """Features [num_patches, vision_hidden_size] of a pack that `size` is for; the next call overwrites them.

        Takes what the model takes, and the pictures' lengths, which add up to num_patches.
        """
        num_patches = len(patches)
        self._patches[:num_patches].copy_(patches)
        self._rows[:num_patches].copy_(rows)
        self._columns[:num_patches].copy_(columns)
        self._set_starts(lengths, size)
        recorded = self._recorded[size]
        recorded.run()
        return recorded.out[:num_patches]

    def _set_starts(self, lengths: Sequence[int], size: int) -> None:
        """Pictures first, then what fills up, then empty segments: [0, 4, 10, 16, 16, 16] for 4 and 6 of 16 patches."""
        starts = list(accumulate(lengths, initial=0))
        starts += [size] * (len(self._starts) - len(starts))
        self._starts.copy_(torch.tensor(starts, dtype=torch.int32))

    def _make_work(self, size: int) -> tuple[Run, Tensor]:
        config = self._model.config
        features = self._patches.new_zeros(size, config.vision_hidden_size)
        self._set_starts([size], size)
        # One segment more than pictures, for the rows that fill up.
        starts = self._starts[: most_pictures(size) + 2]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scale = config.vision_attention_multiplier
            return self._attention(query, key, value, starts=starts, longest=size, scale=scale)

        def work() -> None:
            features.copy_(self._model(self._patches[:size], self._rows[:size], self._columns[:size], attend))

        return work, features
