"""Lays out what the scheduler chose as the numbers of one forward pass.

Knows requests, their tokens, blocks and images. Does not know the model or how requests were chosen.
"""

from collections.abc import Sequence

from decoder_service.adapters.adapter_ref import NO_ADAPTER
from decoder_service.engine.step import ScheduledBatch, ScheduledRequest
from decoder_service.model.batch import BatchLayout, ImageRows, PromptRows
from decoder_service.model.splice_error import SpliceError
from decoder_service.vision.image_encoder import ImageFeatures


def lay_out(batch: ScheduledBatch, *, block_size: int) -> BatchLayout:
    """Lay out a batch."""
    layout, is_ahead = BatchLayout(sources=batch.sources), batch.is_ahead
    for scheduled in batch.requests:
        request, num_tokens, place, draft = scheduled
        start = request.num_computed_tokens if place is None else place
        num_tokens += len(draft)
        layout.query_lengths.append(num_tokens)
        layout.seq_lens.append(start + num_tokens)
        table = request.block_table
        if is_ahead or (start >= len(request.prompt_token_ids) and request.is_generating):
            # What follows for any span, for what nearly all of them are.
            layout.logits_indices.append(len(layout.token_ids))
            layout.token_ids.append(0 if is_ahead else request.output_token_ids[-1])
            layout.positions.append(start)
            layout.slots.append(table[start // block_size] * block_size + start % block_size)
            if draft:
                _add_draft(layout, draft, range(start + 1, start + num_tokens), table, block_size)
        else:
            _add_span(layout, scheduled, block_size)
    layout.block_tables, layout.max_blocks = _block_tables(batch)
    adapters = [scheduled.request.adapter.index for scheduled in batch.requests]
    layout.adapters = adapters if max(adapters, default=NO_ADAPTER.index) >= 0 else ()
    return layout


def _add_draft(layout: BatchLayout, draft: Sequence[int], places: range, table: Sequence[int], block_size: int) -> None:
    """Append what a request tries behind its last known token; each gets logits."""
    first = len(layout.token_ids)
    layout.logits_indices.extend(range(first, first + len(draft)))
    layout.token_ids.extend(draft)
    layout.positions.extend(places)
    layout.slots.extend([table[place // block_size] * block_size + place % block_size for place in places])


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
