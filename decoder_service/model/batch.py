"""Turns what the scheduler chose into the numbers and tensors of one forward pass.

Knows the layout of a batch. Does not know the model or how requests were chosen.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from torch import Tensor

from decoder_service.adapters.adapter_ref import NO_ADAPTER
from decoder_service.engine.step import ScheduledBatch, ScheduledRequest
from decoder_service.model.splice_error import SpliceError
from decoder_service.vision.image_encoder import ImageFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRows:
    """Rows of one image's features that this pass splices in."""

    features: ImageFeatures
    """All of the image's rows, row-major."""
    first: int
    """First row to use."""
    last: int
    """One past the last row to use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRows:
    """Rows of one request whose logits say how likely the prompt's next tokens were."""

    request_id: str
    first: int
    """First row in the batch; one row follows another."""
    token_ids: tuple[int, ...]
    """For each row, the token of the prompt that comes after it."""
    num_top: int
    """Likeliest tokens to tell with each."""


@dataclass(slots=True)
class BatchLayout:
    """New tokens of several requests, packed one request after another, as numbers on the host."""

    token_ids: list[int] = field(default_factory=list)
    """[num_tokens]"""
    positions: list[int] = field(default_factory=list)
    """[num_tokens], counted from 0 in each request"""
    slots: list[int] = field(default_factory=list)
    """[num_tokens], where each token's key and value go"""
    query_lengths: list[int] = field(default_factory=list)
    """[num_requests], new tokens"""
    seq_lens: list[int] = field(default_factory=list)
    """[num_requests], tokens with the new ones"""
    logits_indices: list[int] = field(default_factory=list)
    """[num_sampled], rows that get logits to choose a token from; several completions begin with one row"""
    image_indices: list[int] = field(default_factory=list)
    """[num_image_rows], rows whose embedding an image row replaces"""
    image_rows: list[ImageRows] = field(default_factory=list)
    """The image rows, in the order of `image_indices`"""
    prompt_rows: list[PromptRows] = field(default_factory=list)
    """Rows that get logits to judge the prompt by; none for requests that do not ask for them"""
    block_tables: Sequence[int] = ()
    """[num_requests * max_blocks], padded with each request's own first block, which the lengths hide"""
    max_blocks: int = 0
    sources: Sequence[int] = ()
    """[num_tokens], of a step that is planned ahead: the places of its tokens among those of the step before"""
    adapters: Sequence[int] = ()
    """[num_requests], each one's adapter as `Request` has it; none where nobody has one"""

    def continue_from(self, before: Sequence[int]) -> None:
        """Take the tokens of a step that is planned ahead from those that the step before has chosen."""
        self.token_ids = [before[source] for source in self.sources]

    def to(self, move: "Callable[[array[int]], Tensor]") -> "ForwardBatch":
        """The same as tensors on the device, where `move` brings numbers."""
        columns = (
            self.token_ids,
            self.positions,
            self.slots,
            self.logits_indices,
            self.image_indices,
            self.seq_lens,
            self.sources,
            self.block_tables,
        )
        # One tensor made and moved, not eight; an array becomes one in a fraction of the time that a list takes.
        tensor = move(array("q", [*chain.from_iterable(columns)]))
        on_device = tensor.split_with_sizes([len(column) for column in columns])
        return ForwardBatch(
            token_ids=on_device[0],
            positions=on_device[1],
            slot_mapping=on_device[2],
            block_tables=on_device[7].view(-1, self.max_blocks),
            query_lengths=tuple(self.query_lengths),
            seq_lens=tuple(self.seq_lens),
            seq_lens_there=on_device[5],
            logits_indices=on_device[3],
            image_indices=on_device[4],
            image_rows=tuple(self.image_rows),
            prompt_rows=tuple(self.prompt_rows),
            sources=on_device[6] if self.sources else None,
            adapters=tuple(self.adapters),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """New tokens of several requests, as a forward pass takes them; see `BatchLayout`."""

    token_ids: Tensor
    """[num_tokens]; any at all in a step that is planned ahead, until `continued_from` knows them"""
    positions: Tensor
    """[num_tokens], counted from 0 in each request"""
    slot_mapping: Tensor
    """[num_tokens], where each token's key and value go"""
    block_tables: Tensor
    """[num_requests, max_blocks], padded with each request's own first block, which the lengths hide"""
    query_lengths: tuple[int, ...]
    """[num_requests], new tokens"""
    seq_lens: tuple[int, ...]
    """[num_requests], tokens with the new ones"""
    seq_lens_there: Tensor
    """[num_requests], the same on the device"""
    logits_indices: Tensor
    """[num_sampled], rows that get logits to choose a token from; several completions begin with one row"""
    image_indices: Tensor
    """[num_image_rows], rows whose embedding an image row replaces"""
    image_rows: tuple[ImageRows, ...]
    """The image rows, in the order of `image_indices`"""
    prompt_rows: tuple[PromptRows, ...] = ()
    """Rows that get logits to judge the prompt by; none for requests that do not ask for them"""
    sources: Tensor | None = None
    """[num_tokens], see `BatchLayout`; None for a step that is not planned ahead"""
    adapters: tuple[int, ...] = ()
    """[num_requests], each one's adapter as `Request` has it; none where nobody has one"""

    def continued_from(self, before: Tensor) -> "ForwardBatch":
        """The batch with the tokens that the step before has chosen, if it is planned ahead."""
        return self if self.sources is None else replace(self, token_ids=before[self.sources])


def lay_out(batch: ScheduledBatch, *, block_size: int) -> BatchLayout:
    """Lay out a batch."""
    layout, is_ahead = BatchLayout(sources=batch.sources), batch.is_ahead
    for scheduled in batch.requests:
        request, num_tokens, place = scheduled
        start = request.num_computed_tokens if place is None or not is_ahead else place
        layout.query_lengths.append(num_tokens)
        layout.seq_lens.append(start + num_tokens)
        table = request.block_table
        if is_ahead or (start >= len(request.prompt_token_ids) and request.is_generating):
            # What follows for any span, for what nearly all of them are.
            layout.logits_indices.append(len(layout.token_ids))
            layout.token_ids.append(0 if is_ahead else request.output_token_ids[-1])
            layout.positions.append(start)
            layout.slots.append(table[start // block_size] * block_size + start % block_size)
        else:
            _add_span(layout, scheduled, block_size)
    layout.block_tables, layout.max_blocks = _block_tables(batch)
    adapters = [scheduled.request.adapter.index for scheduled in batch.requests]
    layout.adapters = adapters if max(adapters, default=NO_ADAPTER.index) >= 0 else ()
    return layout


def _add_span(layout: BatchLayout, scheduled: ScheduledRequest, block_size: int) -> None:
    """Append any span of a request's tokens."""
    request, start = scheduled.request, scheduled.request.num_computed_tokens
    end, offset, table = start + scheduled.num_scheduled_tokens, len(layout.token_ids) - start, request.block_table
    if start < request.num_prompt_tokens:
        for rows, indices in _image_rows(scheduled, offset=offset):
            layout.image_rows.append(rows)
            layout.image_indices.extend(indices)
        layout.prompt_rows.extend(_prompt_rows(scheduled, offset=offset))
    layout.token_ids.extend(request.token_ids(start, end))
    layout.positions.extend(range(start, end))
    layout.slots.extend([table[place // block_size] * block_size + place % block_size for place in range(start, end)])
    if end == request.num_tokens:
        layout.logits_indices.extend([len(layout.token_ids) - 1] * request.num_places)


def _image_rows(scheduled: ScheduledRequest, offset: int) -> list[tuple[ImageRows, list[int]]]:
    """Image rows inside the scheduled span, and where they go; `offset` maps positions to batch rows.

    Places come from the placeholder ranges and not from token ids: a model may generate the placeholder's
    id, and that token is then a token like any other.
    """
    request, start = scheduled.request, scheduled.request.num_computed_tokens
    end = start + scheduled.num_scheduled_tokens
    found = []
    for index, span in enumerate(request.placeholders):
        first, last = max(start, span.offset), min(end, span.offset + span.length)
        if first >= last:
            continue
        features = request.features[index]
        if not isinstance(features, ImageFeatures):
            raise SpliceError("an image was scheduled before its features arrived")
        rows = ImageRows(
            features=features,
            first=span.grid.patches_before(first - span.offset),
            last=span.grid.patches_before(last - span.offset),
        )
        step = span.grid.width + 1
        places = [place + offset for place in range(first, last) if (place - span.offset) % step != step - 1]
        found.append((rows, places))
    return found


def _prompt_rows(scheduled: ScheduledRequest, offset: int) -> list[PromptRows]:
    """Rows inside the scheduled span that judge the prompt, and have not done so before a preemption.

    position            0   1   2   3   4      prompt of 5 tokens, logprobs of t1 are there
    token              t0  t1  t2  t3  t4
    its row judges     t1  t2  t3  t4   -      scheduled 0 to 4: rows 1 to 3 are asked for
    """
    request, start = scheduled.request, scheduled.request.num_computed_tokens
    if request.prompt_logprobs is None or request.sampling.prompt_logprobs is None:
        return []
    first = len(request.prompt_logprobs)
    last = min(start + scheduled.num_scheduled_tokens, request.num_prompt_tokens - 1)
    if first < start and first < request.num_prompt_tokens - 1:
        raise RuntimeError(f"prompt logits of position {first} are asked for, but it was not computed")
    if first >= last:
        return []
    return [
        PromptRows(
            request_id=request.request_id,
            first=first + offset,
            token_ids=request.prompt_token_ids[first + 1 : last + 1],
            num_top=request.sampling.prompt_logprobs,
        )
    ]


def _block_tables(batch: ScheduledBatch) -> tuple[Sequence[int], int]:
    """The requests' tables one after another, and the width that they are filled up to."""
    tables = [scheduled.request.block_table for scheduled in batch.requests]
    if len(tables) == 1:
        return tuple(tables[0]), len(tables[0])  # A copy: it may grow before the step is computed.
    width = max(map(len, tables))
    filled: list[int] = []
    for table in tables:
        filled += table
        # Hidden values are still multiplied by 0, so they must not be those of a request that may hold a NaN.
        filled += table[:1] * (width - len(table))
    return filled, width
