"""The decoder's arithmetic such that a request's logits are the same bits in any company: `--deterministic`.

Knows that a library's product depends on the number of its rows, and not on which row a row is. So every pass over
the layers has exactly `_TILE` rows: a batch is cut into tiles of new rows, in order, and the last is filled up with
zeros. Attention is `aligned_attention`, whose products depend on a row's position alone. What a chunk, a batch,
a preemption or the prefix cache changes is then only where a row lies in a tile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.aligned_attention import aligned_attention
from decoder_service.adapters.changes import Changes
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.compute import TorchCompute, changes_of
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel

_TILE = 16
"""Rows of every product: enough for decoding, few enough to waste little on one request alone."""


class TiledCompute:
    """`Compute` in plain torch and in tiles, on any device whose products keep the promise above."""

    name = "torch in tiles"

    def __init__(self, model: DecoderModel, kv_cache: KVCache) -> None:
        self._plain = TorchCompute(model, kv_cache)
        self._model = model
        self._kv_cache = kv_cache

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `Compute`."""
        return self._plain.embed(token_ids)

    def project(self, image_features: Tensor) -> Tensor:
        """See `Compute`."""
        return _in_tiles(self._plain.project, image_features)

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        """See `Compute`."""
        changes = changes_of(self._model, forward)
        return torch.cat([self._tile(embeds, forward, spans, changes) for spans in _tiles(forward)])

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Compute`."""
        return _in_tiles(self._plain.logits, hidden)

    def _tile(self, embeds: Tensor, forward: ForwardBatch, spans: "list[_Span]", changes: Changes) -> Tensor:
        """One pass over the layers for rows that follow one another; a request's earlier rows have been computed."""
        rows = slice(spans[0].first, spans[-1].last)
        num_rows = rows.stop - rows.start

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self._kv_cache.write(layer, forward.slot_mapping[rows], key[:num_rows], value[:num_rows])
            out = torch.zeros_like(query)
            for span in spans:
                place = slice(span.first - rows.start, span.last - rows.start)
                out[place] = aligned_attention(
                    query[place],
                    self._kv_cache.key_blocks[layer],
                    self._kv_cache.value_blocks[layer],
                    block_table=forward.block_tables[span.request],
                    seq_len=span.seq_len,
                    scale=self._model.config.attention_multiplier,
                    sliding_window=self._model.config.sliding_window,
                )
            return out

        hidden: Tensor = self._model.decoder(
            _filled_up(embeds[rows]),
            _filled_up(forward.positions[rows]),
            attend,
            changes.tile(rows.start, rows.stop, _TILE),
        )
        return hidden[:num_rows]


@dataclass(frozen=True, slots=True)
class _Span:
    """New rows of one request within one tile."""

    request: int
    """Its place in the batch."""
    first: int
    """First row in the batch."""
    last: int
    """One past the last row."""
    seq_len: int
    """Tokens of the request up to the last of these rows."""


def _tiles(forward: ForwardBatch) -> Iterator[list[_Span]]:
    """The batch's rows in order, `_TILE` at a time."""
    spans: list[_Span] = []
    row = room = 0
    for request, (length, seq_len) in enumerate(zip(forward.query_lengths, forward.seq_lens, strict=True)):
        end = row + length
        while row < end:
            if room == 0:
                if spans:
                    yield spans
                spans, room = [], _TILE
            taken = min(room, end - row)
            spans.append(_Span(request, row, row + taken, seq_len - (end - row - taken)))
            row += taken
            room -= taken
    if spans:
        yield spans


def _in_tiles(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function over x [num_rows, width] in tiles; it must treat every row alone."""
    tiles = [function(_filled_up(tile))[: len(tile)] for tile in x.split(_TILE)]
    return torch.cat(tiles)


def _filled_up(x: Tensor) -> Tensor:
    """A copy of x [num_rows, ...] with `_TILE` rows, at an address that does not depend on the batch either."""
    tile = x.new_zeros((_TILE, *x.shape[1:]))
    tile[: len(x)] = x
    return tile
