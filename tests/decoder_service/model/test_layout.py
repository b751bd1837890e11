"""What a step computes is read when it is begun, as the requests may have changed when it is computed."""

import pytest

from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch, ScheduledRequest
from decoder_service.model.batch import BatchLayout
from decoder_service.model.batch_layout import lay_out
from decoder_service.sampling.sampling_params import SamplingParams


def generating(count: int) -> list[Request]:
    requests = []
    for number in range(count):
        request = Request(
            request_id=f"r{number}", prompt_token_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=9), arrival=number
        )
        request.output_token_ids, request.num_computed_tokens = [4], 3
        request.block_table.append(BlockId(number))
        requests.append(request)
    return requests


def numbers_of(layout: BatchLayout) -> list[list[int]]:
    columns = (layout.token_ids, layout.positions, layout.slots, layout.seq_lens, layout.block_tables)
    return [list(column) for column in columns]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("is_ahead", [True, False])
def test_a_layout_stays_as_it_is_while_its_requests_go_on(count: int, is_ahead: bool) -> None:
    requests = generating(count)
    for request in requests:
        request.block_table.append(BlockId(7))
    scheduled = tuple(ScheduledRequest(each, 1, 4 if is_ahead else None) for each in requests)
    layout = lay_out(ScheduledBatch(scheduled, sources=tuple(range(count)) if is_ahead else ()), block_size=4)
    before = numbers_of(layout)
    for request in requests:
        request.block_table.append(BlockId(9))
        request.num_computed_tokens += 1
        request.take_token(5)
    assert numbers_of(layout) == before


def test_a_step_ahead_stands_behind_the_token_that_is_being_computed() -> None:
    requests = generating(2)
    for request in requests:
        request.block_table.append(BlockId(10 + request.arrival))
    now = lay_out(ScheduledBatch(tuple(ScheduledRequest(each, 1) for each in requests)), block_size=4)
    rows = tuple(ScheduledRequest(each, 1, 4) for each in reversed(requests))
    ahead = lay_out(ScheduledBatch(rows, sources=(1, 0)), block_size=4)
    assert (now.token_ids, now.positions, now.slots, now.seq_lens) == ([4, 4], [3, 3], [3, 7], [4, 4])
    ahead.continue_from([30, 31])
    assert (ahead.token_ids, ahead.positions, ahead.slots, ahead.seq_lens) == ([31, 30], [4, 4], [44, 40], [5, 5])
