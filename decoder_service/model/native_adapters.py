"""Adapters as the kernels read them: packed, and a structure of pointers for each layer.

Knows the layout of `common.native`. Does not know how adapters are stored or who asks for them.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from common.model.config import MistralConfig
from common.native.library import CAdapterLayer, CLowRank, CWeights, Library
from common.native.weights import PackedWeights
from decoder_service.adapters.adapter import Adapter, LowRank
from decoder_service.adapters.joined import PRODUCTS, joined_changes


class NativeAdapters:
    """All layers of all adapters, one adapter after another."""

    def __init__(self, library: Library, adapters: Sequence[Adapter], config: MistralConfig) -> None:
        """Pack them; they stay as they are, too."""
        self._library = library
        self._packed: list[PackedWeights] = []  # Kept here, as the structures have pointers alone.
        num_layers = config.num_hidden_layers
        self.c = (CAdapterLayer * (num_layers * len(adapters)))(
            *(
                self._layer(layer, changes)
                for changes in (joined_changes(adapter, config) for adapter in adapters)
                for layer in range(num_layers)
            )
        )

    def _layer(self, layer: int, changes: Mapping[tuple[int, str], LowRank]) -> CAdapterLayer:
        return CAdapterLayer(*(self._change(changes.get((layer, product))) for product in PRODUCTS))

    def _change(self, change: LowRank | None) -> CLowRank:
        return CLowRank() if change is None else CLowRank(self._pack(change.down), self._pack(change.up))

    def _pack(self, weight: Tensor) -> CWeights:
        columns, depth = weight.shape
        linear = nn.Linear(depth, columns, bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        packed = PackedWeights(self._library, [linear])
        self._packed.append(packed)
        return packed.c
