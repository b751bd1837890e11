"""`Compute` on CUDA: Triton's kernels between torch's products, and recorded passes for steps of single tokens.

Knows the model's weights, the KV cache and one batch's tensors. Does not know requests, queues or sampling.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate

import torch
from torch import Tensor

from common.model.graph_recorder import GraphRecorder
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.compute import TorchCompute
from decoder_service.model.cuda.decode_graphs import DecodeGraphs, batch_sizes
from decoder_service.model.cuda.layer_weights import LayerWeights, join_layers
from decoder_service.model.cuda.layers import CudaLayers, Places, num_processors
from decoder_service.model.cuda.tiles import AttentionTiles, num_splits_for
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel


class CudaCompute:
    """`Compute` with kernels of our own; without a recorder every pass is launched kernel by kernel."""

    name = "cuda"

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVCache,
        *,
        recorder: GraphRecorder | None,
        max_num_requests: int,
        max_model_len: int,
        weights: Sequence[LayerWeights] | None = None,
    ) -> None:
        """Record passes for up to `max_num_requests` requests. The model's weights are joined where none are given."""
        self._plain = TorchCompute(model, kv_cache)
        self._config = model.config
        self._device = model.device
        self._num_processors = num_processors(model.device)
        self._layers = CudaLayers(model.config, weights or join_layers(model.decoder), kv_cache)
        self._graphs: DecodeGraphs | None = None
        if recorder is not None:
            with torch.inference_mode():
                self._graphs = DecodeGraphs(
                    self._layers,
                    recorder,
                    sizes=batch_sizes(max_num_requests),
                    max_blocks=-(-max_model_len // kv_cache.block_size),
                    hidden_size=model.config.hidden_size,
                    choose_splits=lambda size: self._num_splits(size, max_model_len),
                    device=model.device,
                    dtype=model.dtype,
                )

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `Compute`."""
        return self._plain.embed(token_ids)

    def project(self, image_features: Tensor) -> Tensor:
        """See `Compute`. Raises RuntimeError for a model that takes no images."""
        return self._plain.project(image_features)

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        """See `Compute`."""
        # Triton launches on the thread's own device, which need not be the one that the tensors are on.
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            if self._graphs is not None and self._graphs.fits(forward):
                return self._graphs.hidden(embeds, forward)
            return self._layers(embeds, self._places(forward))

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Compute`."""
        return self._plain.logits(hidden)

    def _places(self, forward: ForwardBatch) -> Places:
        groups = self._config.num_attention_heads // self._config.num_key_value_heads
        tiles = AttentionTiles.for_lengths(forward.query_lengths, num_groups=groups, device=self._device)
        starts = [*accumulate(forward.query_lengths, initial=0)]
        is_single = starts[-1] == len(forward.query_lengths)  # Then the device can count by itself.
        query_starts = (
            torch.arange(len(starts), dtype=torch.int32, device=self._device)
            if is_single
            else torch.tensor(starts, dtype=torch.int32).to(self._device, non_blocking=True)
        )
        return Places(
            positions=forward.positions,
            slot_mapping=forward.slot_mapping,
            block_tables=forward.block_tables,
            query_starts=query_starts,
            seq_lens=forward.seq_lens_there.int(),
            tiles=tiles,
            num_splits=self._num_splits(len(tiles.requests), max(forward.seq_lens)),
        )

    def _num_splits(self, num_tiles: int, max_seq_len: int) -> int:
        return num_splits_for(
            num_tiles=num_tiles,
            num_key_value_heads=self._config.num_key_value_heads,
            num_processors=self._num_processors,
            max_seq_len=max_seq_len,
        )
