"""`Compute` on CUDA: Triton's kernels between torch's products, and recorded passes for steps of single tokens.

Knows the model's weights, the KV cache and one batch's tensors. Does not know requests, queues or sampling.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate

import torch
from torch import Tensor

from common.model.fused_rows import add_rms_norm
from common.model.graph_recorder import GraphRecorder
from decoder_service.adapters.changes import Changes
from decoder_service.adapters.joined import joined_changes
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.compute import TorchCompute
from decoder_service.model.cuda.attention import AttentionShape, PagedAttention, Spans
from decoder_service.model.cuda.decode_graphs import DecodeGraphs, OneRow, batch_sizes
from decoder_service.model.cuda.layer_weights import LayerWeights, join_layers
from decoder_service.model.cuda.layers import CudaLayers, Places
from decoder_service.model.cuda.one_row_layers import OneRowLayers
from decoder_service.model.cuda.pass_choice import Clock, device_clock
from decoder_service.model.cuda.products import Fp8Product
from decoder_service.model.cuda.triton_attention import TritonAttention
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel

_LIMIT, _FP8_LIMIT = 0.25, 0.5
"""How far a row may be from that of the other way to compute it, over its length: a few times what rounding does, which
in 8 bits only one of the two ways does to what goes in."""


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
        attention: PagedAttention | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Record passes for up to `max_num_requests` requests.

        The model's weights are joined, and attention is computed by our own kernel, where none are given. Ways to
        compute a step of one token are measured by `clock`, or a GPU's own; without one there is the usual way.
        """
        self._plain = TorchCompute(model, kv_cache)
        self._decoder, self._norm = model.decoder, model.decoder.model.norm
        self._device = model.device
        self._adapters = [joined_changes(adapter, model.config) for adapter in model.adapters]
        shape = AttentionShape.of(model.config, kv_cache, model.dtype)
        self._attention = attention or TritonAttention(shape, model.device)
        joined = weights or join_layers(model.decoder)
        self._layers = CudaLayers(model.config, joined, kv_cache)
        self._graphs: DecodeGraphs | None = None
        if recorder is not None:
            with torch.inference_mode():
                self._graphs = DecodeGraphs(
                    self._layers,
                    self._attention,
                    recorder,
                    sizes=batch_sizes(max_num_requests),
                    max_model_len=max_model_len,
                    block_size=kv_cache.block_size,
                    hidden_size=model.config.hidden_size,
                    device=model.device,
                    dtype=model.dtype,
                    one_row=self._one_row(model, joined, kv_cache, clock),
                )

    def _one_row(
        self, model: DecoderModel, weights: Sequence[LayerWeights], kv_cache: KVCache, clock: Clock | None
    ) -> OneRow | None:
        clock = clock or (device_clock(model.device) if model.device.type == "cuda" else None)
        if clock is None:
            return None
        layers = OneRowLayers(model.config, weights, kv_cache)
        return OneRow(
            layers=layers, clock=clock, limit=_FP8_LIMIT if isinstance(weights[0].qkv, Fp8Product) else _LIMIT
        )

    @property
    def recorded_sizes(self) -> tuple[int, ...]:
        """Batch sizes whose passes were recorded, rising; fewer than were asked for where one could not be."""
        return self._graphs.sizes if self._graphs is not None else ()

    @property
    def one_row_figures(self) -> dict[str, float]:
        """See `DecodeGraphs`."""
        return self._graphs.one_row_figures if self._graphs is not None else {}

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `Compute`."""
        return self._plain.embed(token_ids)

    def project(self, image_features: Tensor) -> Tensor:
        """See `Compute`. Raises RuntimeError for a model that takes no images."""
        return self._plain.project(image_features)

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        """See `Compute`."""
        with self._own_device():
            if self._graphs is not None and self._graphs.fits(forward):
                return self._graphs.hidden(embeds, forward)
            return self._layers(embeds, self._places(forward))

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Compute`."""
        with self._own_device():
            return self._decoder.head(add_rms_norm(hidden, None, self._norm.weight, eps=self._norm.eps))

    def _own_device(self) -> AbstractContextManager[object]:
        """Triton launches on the thread's own device, which need not be the one that the tensors are on."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _places(self, forward: ForwardBatch) -> Places:
        starts = [*accumulate(forward.query_lengths, initial=0)]
        is_single = starts[-1] == len(forward.query_lengths)  # Then the device can count by itself.
        query_starts = (
            torch.arange(len(starts), dtype=torch.int32, device=self._device)
            if is_single
            else torch.tensor(starts, dtype=torch.int32).to(self._device, non_blocking=True)
        )
        spans = Spans(
            block_tables=forward.block_tables.int(),
            query_starts=query_starts,
            seq_lens=forward.seq_lens_there.int(),
            query_lengths=forward.query_lengths,
            most_tokens=forward.seq_lens,
        )
        return Places(
            positions=forward.positions,
            slot_mapping=forward.slot_mapping,
            attend=self._attention.plan(spans),
            changes=Changes.of(self._adapters, forward.adapters, forward.query_lengths, self._device),
        )
