"""What computes the decoder's arithmetic: the interface, and the plain torch way.

Knows the model's weights, the KV cache and one batch's tensors. Does not know requests, queues or sampling. Which
implementation a service runs with is chosen once, when it starts.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from common.model.attention import paged_attention
from common.model.config import MistralConfig
from decoder_service.adapters.changes import Changes
from decoder_service.model.batch import BatchLayout, ForwardBatch
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel


class Compute(Protocol):
    """The arithmetic of a forward pass, in four parts that the runner puts together."""

    name: str
    """What it is, for logs and metrics."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings [num_tokens, hidden_size] of token_ids [num_tokens], which the caller may write to."""
        ...

    def project(self, image_features: Tensor) -> Tensor:
        """Image embeddings [num_rows, hidden_size] of image_features [num_rows, vision_hidden_size]."""
        ...

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        """Hidden rows [num_tokens, hidden_size] before the final norm; keys and values go into the KV cache.

        Only the rows that get logits, by `logits_indices` or `prompt_rows`, are of use: others may hold anything.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits as fp32 [num_rows, vocab_size] for hidden rows [num_rows, hidden_size]."""
        ...


@runtime_checkable
class WholeCompute(Compute, Protocol):
    """One that also does all that most steps need, up to the choice of the likeliest tokens, in one call."""

    def takes(self, layout: BatchLayout) -> bool:
        """Whether `next_tokens` reads the pictures of a batch, if it has any."""
        ...

    def next_tokens(self, layout: BatchLayout) -> tuple[Sequence[int | None], int]:
        """The likeliest token for each of `layout.logits_indices` and how many of them are near ties.

        Of a batch that it `takes`. None where not all of a token's logits are finite. Raises SpliceError where rows of
        a picture are missing.
        """
        ...

    def greedy(self, logits: Tensor) -> tuple[list[int], list[bool], list[bool]]:
        """Of each row of logits the likeliest token, whether all are finite, and whether it is a near tie."""
        ...


class TorchCompute:
    """`Compute` in plain torch, on any device and in any type."""

    name = "torch"

    def __init__(self, model: DecoderModel, kv_cache: KVCache) -> None:
        self._model = model
        self._kv_cache = kv_cache

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `Compute`."""
        embeds: Tensor = self._model.decoder.model.embed_tokens(token_ids)
        return embeds

    def project(self, image_features: Tensor) -> Tensor:
        """See `Compute`. Raises RuntimeError for a model that takes no images."""
        if self._model.projector is None:
            raise RuntimeError("images were scheduled on a model that takes none")
        embeds: Tensor = self._model.projector(image_features)
        return embeds

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        """See `Compute`."""
        attend = _PagedAttend(self._model.config, self._kv_cache, forward)
        hidden: Tensor = self._model.decoder(embeds, forward.positions, attend, changes_of(self._model, forward))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Compute`."""
        return self._model.decoder.logits(hidden)


def changes_of(model: DecoderModel, forward: ForwardBatch) -> Changes:
    """What adapters add to the products of a batch."""
    adapters = [adapter.changes for adapter in model.adapters]
    return Changes.of(adapters, forward.adapters, forward.query_lengths, forward.positions.device)


class _PagedAttend:
    """`Attend` over the KV cache for one batch: writes the new keys and values, then reads every block."""

    def __init__(self, config: MistralConfig, kv_cache: KVCache, forward: ForwardBatch) -> None:
        self._config = config
        self._kv_cache = kv_cache
        self._forward = forward

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend for one layer; shapes as in `Attend`."""
        forward = self._forward
        self._kv_cache.write(layer, forward.slot_mapping, key, value)
        return paged_attention(
            query,
            self._kv_cache.key_blocks[layer],
            self._kv_cache.value_blocks[layer],
            block_tables=forward.block_tables,
            query_lengths=forward.query_lengths,
            seq_lens=forward.seq_lens,
            scale=self._config.attention_multiplier,
            sliding_window=self._config.sliding_window,
        )
