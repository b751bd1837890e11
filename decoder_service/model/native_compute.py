"""The decoder's arithmetic in our own kernels: all layers of a step in one call.

Knows how the model's weights and the KV cache are laid out for the kernels (see `common.native`). Does not know how
they compute. On a CPU only; what passes between products is float32. A row's result is the same bits in any batch, so
`--deterministic` costs nothing.
"""

from array import array
from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor, nn

from common.model.rope import inverse_frequencies
from common.native.library import CBatch, CLayer, CProjector, CShape, Library
from common.native.weights import PackedWeights
from decoder_service.model.batch import BatchLayout, ForwardBatch
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.mistral import DecoderLayer
from decoder_service.model.native_adapters import NativeAdapters
from decoder_service.model.near_ties import MARGIN
from decoder_service.model.projector import Projector
from decoder_service.model.splice_error import SpliceError
from decoder_service.model.weights import DecoderModel


class NativeCompute:
    """`Compute` by the kernels. It takes the model's weights over: the modules are of no use afterwards."""

    def __init__(self, model: DecoderModel, kv_cache: KVCache, library: Library, *, in_bytes: bool = False) -> None:
        """Pack the weights, `in_bytes` with 8 bits each."""
        self._library = library
        self._kv_cache = kv_cache
        decoder, config = model.decoder, model.config
        self._hidden_size, self._vocabulary = config.hidden_size, config.vocab_size
        self._layers = [_Layer(layer, library, in_bytes) for layer in decoder.decoder_layers]
        self.name = library.name + _suffix(max(layer.bits for layer in self._layers), library)
        self._norm = decoder.model.norm.weight.detach()
        self._table = None if config.tie_word_embeddings else decoder.model.embed_tokens.weight.detach()
        # A tied table is read by row as well as multiplied with, so it stays as exact as it is.
        head: nn.Embedding | nn.Linear = decoder.model.embed_tokens if config.tie_word_embeddings else decoder.lm_head
        self._head = PackedWeights(library, [head], in_bytes=in_bytes and not config.tie_word_embeddings)
        self._projector = None if model.projector is None else _Projector(model.projector, library)
        shape = CShape(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            feed_forward=config.feed_forward_length,
            vocabulary=config.vocab_size,
            block_size=kv_cache.block_size,
            window=config.sliding_window or 0,
            kv_bits=8 * kv_cache.dtype.itemsize,
            eps=config.rms_norm_eps,
            scale=config.attention_multiplier,
        )
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, torch.device("cpu"))
        blocks = zip(self._layers, kv_cache.key_blocks, kv_cache.value_blocks, strict=True)
        layers = (CLayer * len(self._layers))(*(layer.c(keys, values) for layer, keys, values in blocks))
        self._decoder = library.c.diptych_decoder_new(
            library.pool,
            byref(shape),
            frequencies.data_ptr(),
            layers,
            self._norm.data_ptr(),
            byref(self._head.c),
            None if self._table is None else self._table.data_ptr(),
            0 if self._table is None else 8 * self._table.itemsize,
            None if self._projector is None else byref(self._projector.c),
        )
        self._next = library.c.diptych_decoder_next
        self._adapters = NativeAdapters(library, model.adapters, config)
        library.c.diptych_decoder_set_adapters(self._decoder, len(model.adapters), self._adapters.c)

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `Compute`."""
        out = torch.empty(len(token_ids), self._hidden_size)
        self._library.c.diptych_decoder_embed(self._decoder, len(token_ids), token_ids.data_ptr(), out.data_ptr())
        return out

    def project(self, image_features: Tensor) -> Tensor:
        """See `Compute`. Raises RuntimeError for a model that takes no images."""
        if self._projector is None:
            raise RuntimeError("images were scheduled on a model that takes none")
        features = image_features.contiguous()
        out = torch.empty(len(features), self._hidden_size)
        self._library.c.diptych_decoder_project(self._decoder, len(features), features.data_ptr(), out.data_ptr())
        return out

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        """See `Compute`; the embeddings are overwritten."""
        # Prompts are judged by many rows of theirs: all are computed then.
        count = len(forward.token_ids) if forward.prompt_rows else len(forward.logits_indices)
        self._library.c.diptych_decoder_hidden(
            self._decoder, byref(_c_batch(forward)), count, forward.logits_indices.data_ptr(), embeds.data_ptr()
        )
        return embeds

    def takes(self, layout: BatchLayout) -> bool:
        """See `WholeCompute`: pictures of one type, which the kernels read."""
        dtypes = {rows.features.spec.dtype for rows in layout.image_rows}
        return not dtypes or (len(dtypes) == 1 and dtypes <= _BITS.keys() and self._projector is not None)

    def next_tokens(self, layout: BatchLayout) -> tuple[Sequence[int | None], int]:
        """See `WholeCompute`."""
        count, num_image_rows = len(layout.logits_indices), len(layout.image_indices)
        features, bits = _features(layout)
        num_requests, num_adapted = len(layout.seq_lens), len(layout.adapters)
        numbers = array(
            "q", (len(layout.token_ids), num_requests, layout.max_blocks, count, bits, num_image_rows, num_adapted)
        )
        for column in (
            layout.token_ids,
            layout.positions,
            layout.slots,
            layout.block_tables,
            layout.query_lengths,
            layout.seq_lens,
            layout.adapters,
            layout.logits_indices,
            layout.image_indices,
        ):
            numbers.extend(column)
        chosen = array("q", bytes(numbers.itemsize * count))
        first_number, first_chosen = numbers.buffer_info()[0], chosen.buffer_info()[0]
        num_near_ties: int = self._next(self._decoder, first_number, features, MARGIN, first_chosen)
        token_ids = chosen.tolist()
        if token_ids and min(token_ids) < 0:
            return [None if token_id < 0 else token_id for token_id in token_ids], num_near_ties
        return token_ids, num_near_ties

    def greedy(self, logits: Tensor) -> tuple[list[int], list[bool], list[bool]]:
        """See `Library.greedy`."""
        return self._library.greedy(logits, margin=MARGIN)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Compute`."""
        hidden = hidden.contiguous()
        out = torch.empty(hidden.shape[0], self._vocabulary)
        self._library.c.diptych_decoder_logits(self._decoder, hidden.shape[0], hidden.data_ptr(), out.data_ptr())
        return out


_BITS = {"float32": 32, "bfloat16": 16}
"""Of the types of features that the kernels read."""


def _features(layout: BatchLayout) -> tuple[bytes | None, int]:
    """Rows of pictures one after another, and the bits of each number. Raises SpliceError where one is missing."""
    if not layout.image_rows:
        return None, 0
    spec = layout.image_rows[0].features.spec
    size = spec.width * _BITS[spec.dtype] // 8
    # No tensors: torch lets go of Python's lock at every turn, and other threads of the service take it, and the core.
    features = b"".join([each.features.data[each.first * size : each.last * size] for each in layout.image_rows])
    if len(features) != size * len(layout.image_indices):
        raise SpliceError(f"{len(features) // size} image rows for {len(layout.image_indices)} placeholders")
    return features, _BITS[spec.dtype]


def _c_batch(forward: ForwardBatch) -> CBatch:
    """The structure of pointers; it keeps the lengths alive, the tensors are the batch's."""
    num_requests = len(forward.seq_lens)
    # Not an array of ctypes: a type of each length would be made in nearly every step.
    lengths = array("q", forward.query_lengths + forward.seq_lens + forward.adapters)
    first_length = lengths.buffer_info()[0]
    batch = CBatch(
        forward.token_ids.shape[0],
        num_requests,
        forward.block_tables.shape[1],
        forward.positions.data_ptr(),
        forward.slot_mapping.data_ptr(),
        forward.block_tables.data_ptr(),
        first_length,
        first_length + lengths.itemsize * num_requests,
        first_length + lengths.itemsize * 2 * num_requests if forward.adapters else None,
    )
    batch.lengths = lengths
    return batch


def _suffix(bits: int, library: Library) -> str:
    """What a name says of the bits that layers' weights take."""
    if bits == 8:
        return " int8"
    return " bfloat16 weights" if bits == 16 and not library.rounds else ""


class _Layer:
    """The packed weights of one layer: query, key and value in one product, gate and up in another."""

    def __init__(self, layer: DecoderLayer, library: Library, in_bytes: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._input_norm = layer.input_layernorm.weight.detach()
        self._qkv = PackedWeights(library, [attention.q_proj, attention.k_proj, attention.v_proj], in_bytes=in_bytes)
        self._output = PackedWeights(library, [attention.o_proj], in_bytes=in_bytes)
        self._post_norm = layer.post_attention_layernorm.weight.detach()
        self._gate_up = PackedWeights(library, [mlp.gate_proj, mlp.up_proj], in_bytes=in_bytes)
        self._down = PackedWeights(library, [mlp.down_proj], in_bytes=in_bytes)

    @property
    def bits(self) -> int:
        """The most that a weight of it takes."""
        return max(each.bits for each in (self._qkv, self._output, self._gate_up, self._down))

    def c(self, keys: Tensor, values: Tensor) -> CLayer:
        """The structure of pointers, with the layer's blocks of the KV cache."""
        return CLayer(
            self._input_norm.data_ptr(),
            self._qkv.c,
            self._output.c,
            self._post_norm.data_ptr(),
            self._gate_up.c,
            self._down.c,
            keys.data_ptr(),
            values.data_ptr(),
        )


class _Projector:
    """The packed weights of the projector."""

    def __init__(self, projector: Projector, library: Library) -> None:
        first, second = projector.linear_1, projector.linear_2
        # Kept here, as the structure has pointers alone.
        self._biases = [None if each.bias is None else each.bias.detach().float() for each in (first, second)]
        self._weights = [PackedWeights(library, [each]) for each in (first, second)]
        biases = (None if bias is None else bias.data_ptr() for bias in self._biases)
        self.c = CProjector(*(each.c for each in self._weights), *biases)
