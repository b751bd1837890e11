"""What adapters add to the products of one pass in torch, each for the rows of the requests that ask for it.

Knows tensors. Does not know requests. Every row is multiplied and what is not asked for is left out: a product has the
same number of rows whoever asks, nothing waits for the device, and rows are few where weights are what is waited for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from decoder_service.adapters.adapter import LowRank

LayerChanges = Mapping[tuple[int, str], LowRank]
"""By layer and product."""


@dataclass(frozen=True, slots=True)
class Changes:
    """For each adapter that any row asks for, what it changes and which rows ask: bool [num_rows, 1]."""

    asked: Sequence[tuple[LayerChanges, Tensor]]

    @staticmethod
    def of(
        adapters: Sequence[LayerChanges], chosen: Sequence[int], lengths: Sequence[int], device: torch.device
    ) -> "Changes":
        """Those of a batch: what each request has chosen, -1 for none, and how many rows it has; nobody where empty."""
        if not chosen:
            return NO_CHANGES
        rows = torch.tensor(chosen).repeat_interleave(torch.tensor(lengths))[:, None]
        rows = rows.to(device, non_blocking=True)  # Else the host would wait for all that the device was given.
        return Changes([(adapters[index], rows == index) for index in sorted({*chosen} - {-1})])

    def __call__(self, layer: int, product: str, linear: nn.Module, x: Tensor) -> Tensor:
        """See `Multiply`."""
        return self.add(layer, product, x, linear(x))

    def add(self, layer: int, product: str, x: Tensor, y: Tensor) -> Tensor:
        """What a product makes of x, with what is added; y is what it makes without."""
        for changes, rows in self.asked:
            change = changes.get((layer, product))
            if change is not None:
                added = functional.linear(functional.linear(x, change.down), change.up)
                y = torch.where(rows, y + added, y)
        return y

    def tile(self, first: int, last: int, num_rows: int) -> "Changes":
        """Those of rows from `first` up to `last`, filled up to so many with rows that ask for nothing."""
        missing = num_rows - (last - first)
        return Changes([(each, functional.pad(rows[first:last], (0, 0, 0, missing))) for each, rows in self.asked])


NO_CHANGES = Changes(())
