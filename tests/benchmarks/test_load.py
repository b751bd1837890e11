"""Arrivals, workloads and loops of the load generator."""

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from benchmarks.load.arrivals import arrival_times
from benchmarks.load.generator import closed_loop, observe, open_loop
from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import ImageSize, Span, WorkloadConfig, plan_requests
from benchmarks.statistics import deviation, percentile


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_keep_the_rate_and_spread_with_burstiness(burstiness: float) -> None:
    times = arrival_times(4000, rate=50.0, burstiness=burstiness, seed=3)
    gaps = np.diff([0.0, *times])
    assert times == sorted(times)
    assert times[-1] == pytest.approx(4000 / 50.0)
    # The variation of gamma's gaps is one over the root of its shape.
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.15)


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert arrival_times(3, rate=float("inf"), burstiness=1.0, seed=0) == [0.0, 0.0, 0.0]


def test_percentiles_and_deviations_are_numpys() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    for percent in (0, 37, 50, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert deviation(values) == pytest.approx(np.std(values))


WORKLOAD = WorkloadConfig(
    text_tokens=Span(3, 9),
    output_tokens=Span(5, 5),
    images=Span(0, 2),
    image_sizes=(ImageSize.parse("32x16:3"), ImageSize.parse("16x16")),
    shared_image_ratio=0.5,
    seed=7,
)


def test_a_workload_is_the_same_for_the_same_seed_and_within_its_spans() -> None:
    plans = plan_requests(WORKLOAD, 40, token_ids=range(100, 200))
    assert plans == plan_requests(WORKLOAD, 40, token_ids=range(100, 200))
    assert {len(plan.text_token_ids) for plan in plans} <= set(range(3, 10))
    assert {len(plan.images) for plan in plans} == {0, 1, 2}
    assert all(plan.output_tokens == 5 for plan in plans)


def test_shared_pictures_come_again_and_others_never() -> None:
    files = [file for plan in plan_requests(WORKLOAD, 200, token_ids=range(9)) for file in plan.images]
    again = [file for file in files if files.count(file) > 1]
    assert len(set(again)) == 4
    assert len(again) / len(files) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("text", ["5-3", "x", "-1"])
def test_spans_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Span.parse(text)


async def test_a_closed_loop_never_has_more_requests_under_way_than_callers() -> None:
    under_way, most = 0, 0

    async def send(_: int) -> RequestRecord:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return RequestRecord(sent_at=0.0)

    records = await closed_loop(range(20), 3, send)
    assert (len(records), most) == (20, 3)


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    release = asyncio.Event()
    sent: list[int] = []

    async def send(number: int) -> RequestRecord:
        sent.append(number)
        if len(sent) == 4:
            release.set()
        await release.wait()
        return RequestRecord(sent_at=time.monotonic())

    records = await open_loop(range(4), [0.0, 0.0, 0.001, 0.002], send)
    assert sent == [0, 1, 2, 3]
    assert len(records) == 4


async def test_messages_without_tokens_are_no_chunks_and_an_error_ends_a_record() -> None:
    async def chunks() -> AsyncIterator[int]:
        for count in (0, 2, 0, 1):
            yield count
        raise ConnectionError

    record = await observe(RequestRecord(sent_at=time.monotonic()), chunks())
    assert (len(record.chunk_times), record.output_tokens, record.error) == (2, 3, "ConnectionError")
    assert not record.succeeded
