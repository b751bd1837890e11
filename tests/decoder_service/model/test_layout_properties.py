"""What a pass is given is what each token's place says, whoever else is in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from decoder_service.adapters.adapter_ref import NO_ADAPTER, AdapterRef
from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch, ScheduledRequest
from decoder_service.model.batch import BatchLayout
from decoder_service.model.batch_layout import lay_out
from decoder_service.model.splice_error import SpliceError
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.vision.image_encoder import ImageFeatures

BLOCK_SIZE = 4
ADAPTERS = (NO_ADAPTER, NO_ADAPTER, AdapterRef(0, b"a"), AdapterRef(1, b"b"))


def features_of(grid: PatchGrid, name: str) -> ImageFeatures:
    spec = FeatureSpec(image_hash=ImageHash(name.encode()), grid=grid, width=1, dtype="float32")
    return ImageFeatures(spec=spec, data=memoryview(bytes(spec.num_bytes)))


@st.composite
def scheduled(draw: st.DrawFn, number: int) -> ScheduledRequest:
    """A request somewhere on its way, and any of its next tokens."""
    length, spans = draw(st.integers(1, 4)), list[PlaceholderRange]()
    for grid in draw(st.lists(st.builds(PatchGrid, st.integers(1, 3), st.integers(1, 3)), max_size=2)):
        spans.append(PlaceholderRange(length, grid.num_tokens, grid))
        length += grid.num_tokens + draw(st.integers(0, 2))
    judged = draw(st.sampled_from([None, None, 0, 3]))
    request = Request(
        request_id=f"r{number}",
        prompt_token_ids=tuple(range(100 * number, 100 * number + length)),
        placeholders=tuple(spans),
        image_identities=(b"",) * len(spans),
        sampling=SamplingParams(max_tokens=99, prompt_logprobs=judged),
        adapter=draw(st.sampled_from(ADAPTERS)),
        arrival=number,
    )
    request.output_token_ids = list(range(1000 * number, 1000 * number + draw(st.integers(0, 4))))
    request.features = [features_of(span.grid, f"{number}/{index}") for index, span in enumerate(spans)]
    request.num_computed_tokens = draw(st.integers(0, request.num_tokens - 1) | st.just(request.num_tokens - 1))
    if judged is not None:
        told = min(request.num_computed_tokens, length - 1)
        request.prompt_logprobs = [Logprobs(0.0)] * draw(st.integers(told, length - 1))
    left = request.num_tokens - request.num_computed_tokens
    num_tokens = draw(st.integers(1, left) | st.just(left))
    tries = request.is_generating and request.output_token_ids
    tried = tuple(draw(st.lists(st.integers(0, 9), max_size=5))) if tries else ()
    if not request.output_token_ids and draw(st.booleans()):
        request.forks = (request,) * 2
    end = request.num_computed_tokens + num_tokens + len(tried)
    request.block_table = [BlockId(50 * number + 7 * place) for place in range(-(-end // BLOCK_SIZE))]
    return ScheduledRequest(request, num_tokens, None, tried)


@dataclass
class Row:
    """One token of a pass, by its place alone."""

    token_id: int
    position: int
    slot: int
    num_tokens_told: int
    patch: tuple[object, int] | None
    judges: tuple[str, int, int] | None


def rows_of(each: ScheduledRequest) -> list[Row]:
    request, table = each.request, each.request.block_table
    known = [*request.prompt_token_ids, *request.output_token_ids, *each.draft]
    patches: dict[int, tuple[object, int]] = {}
    for span, features in zip(request.placeholders, request.features, strict=True):
        height, width = span.grid
        for row in range(height):
            for column in range(width):
                patches[span.offset + row * (width + 1) + column] = (features, row * width + column)
    rows = []
    for position in range(each.start, each.end + len(each.draft)):
        judges, told = None, request.prompt_logprobs
        if told is not None and len(told) <= position < request.num_prompt_tokens - 1:
            judges = (request.request_id, known[position + 1], request.sampling.prompt_logprobs or 0)
        rows.append(
            Row(
                known[position],
                position,
                table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE,
                0 if position + 1 < request.num_tokens else 1 + len(request.forks),
                patches.get(position),
                judges,
            )
        )
    return rows


def patches_in(layout: BatchLayout) -> dict[int, tuple[object, int]]:
    found = [(rows.features, patch) for rows in layout.image_rows for patch in range(rows.first, rows.last)]
    return dict(zip(layout.image_indices, found, strict=True))


def judged_in(layout: BatchLayout) -> dict[int, tuple[str, int, int]]:
    return {
        rows.first + index: (rows.request_id, token_id, rows.num_top)
        for rows in layout.prompt_rows
        for index, token_id in enumerate(rows.token_ids)
    }


@given(st.integers(1, 4).flatmap(lambda count: st.tuples(*[scheduled(number) for number in range(count)])))
def test_every_row_follows_from_its_token_s_place(batch: Sequence[ScheduledRequest]) -> None:
    layout = lay_out(ScheduledBatch(tuple(batch)), block_size=BLOCK_SIZE)
    each_ones = [rows_of(each) for each in batch]
    rows = [row for ones in each_ones for row in ones]
    assert layout.token_ids == [row.token_id for row in rows]
    assert layout.positions == [row.position for row in rows]
    assert layout.slots == [row.slot for row in rows]
    assert layout.query_lengths == [len(ones) for ones in each_ones]
    assert layout.seq_lens == [ones[-1].position + 1 for ones in each_ones]
    assert layout.logits_indices == [place for place, row in enumerate(rows) for _ in range(row.num_tokens_told)]
    assert patches_in(layout) == {place: row.patch for place, row in enumerate(rows) if row.patch is not None}
    assert judged_in(layout) == {place: row.judges for place, row in enumerate(rows) if row.judges is not None}


@given(st.integers(1, 4).flatmap(lambda count: st.tuples(*[scheduled(number) for number in range(count)])))
def test_tables_are_filled_up_with_a_block_of_their_own_and_adapters_are_told_where_there_are_any(
    batch: Sequence[ScheduledRequest],
) -> None:
    layout = lay_out(ScheduledBatch(tuple(batch)), block_size=BLOCK_SIZE)
    tables = [each.request.block_table for each in batch]
    assert layout.max_blocks == max(map(len, tables))
    filled = [[*table, *table[:1] * (layout.max_blocks - len(table))] for table in tables]
    assert list(layout.block_tables) == [block_id for table in filled for block_id in table]
    adapters = [each.request.adapter.index for each in batch]
    assert list(layout.adapters) == ([] if set(adapters) == {-1} else adapters)


def test_an_image_that_is_not_here_cannot_be_laid_out() -> None:
    grid = PatchGrid(1, 2)
    request = Request(
        request_id="r",
        prompt_token_ids=(1, 2, 3, 4),
        placeholders=(PlaceholderRange(1, 3, grid),),
        image_identities=(b"",),
        sampling=SamplingParams(max_tokens=1),
        arrival=0,
    )
    request.block_table = [BlockId(0)]
    lay_out(ScheduledBatch((ScheduledRequest(request, 1),)), block_size=BLOCK_SIZE)
    with pytest.raises(SpliceError):
        lay_out(ScheduledBatch((ScheduledRequest(request, 2),)), block_size=BLOCK_SIZE)


def test_prompt_logits_that_a_cache_has_spared_cannot_be_told() -> None:
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
    request = Request(request_id="r", prompt_token_ids=(1, 2, 3), sampling=sampling, arrival=0)
    request.block_table, request.num_computed_tokens = [BlockId(0)], 1
    with pytest.raises(RuntimeError, match="position 0"):
        lay_out(ScheduledBatch((ScheduledRequest(request, 1),)), block_size=BLOCK_SIZE)
