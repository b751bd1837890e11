"""The definitions of a load's figures, on requests whose times are written by hand.

The expected numbers follow from the words of vLLM's serving benchmark by hand, not from our code.
"""

import pytest

from benchmarks.load.figures import Slo, figures, inter_token_latencies, time_per_output_token, time_to_first_token
from benchmarks.load.records import RequestRecord


def record(sent_at: float, *chunks: float, tokens: int | None = None, error: str | None = None) -> RequestRecord:
    return RequestRecord(
        sent_at=sent_at,
        num_images=1,
        chunk_times=list(chunks),
        ended_at=(chunks or (sent_at,))[-1] + 0.5,
        prompt_tokens=10,
        output_tokens=len(chunks) if tokens is None else tokens,
        error=error,
    )


FAST = record(0.0, 0.1, 0.2, 0.4)  # TTFT 100 ms, TPOT 150 ms, E2EL 400 ms
SLOW = record(1.0, 1.5, 2.0)  # TTFT 500 ms, TPOT 500 ms, E2EL 1000 ms
SINGLE = record(1.0, 1.2)  # TTFT 200 ms, no TPOT


def test_a_request_is_timed_from_its_sending_to_its_first_and_last_chunk() -> None:
    assert time_to_first_token(FAST) == pytest.approx(0.1)
    assert inter_token_latencies(FAST) == pytest.approx([0.1, 0.2])
    assert time_per_output_token(FAST) == pytest.approx(0.15)
    assert time_per_output_token(SINGLE) is None


def test_chunks_of_several_tokens_count_once_as_gaps_and_fully_as_tokens() -> None:
    bundled = record(0.0, 1.0, 2.0, tokens=5)
    assert inter_token_latencies(bundled) == pytest.approx([1.0])
    assert time_per_output_token(bundled) == pytest.approx(0.25)


def test_duration_runs_from_the_first_sending_to_the_last_chunk() -> None:
    result = figures([FAST, SLOW, SINGLE])
    assert result.duration == pytest.approx(2.0)
    assert result.request_throughput == pytest.approx(1.5)
    assert result.image_throughput == pytest.approx(1.5)
    assert result.output_throughput == pytest.approx(3.0)
    assert result.total_throughput == pytest.approx(18.0)


def test_gaps_are_pooled_over_requests_and_tpot_is_not() -> None:
    result = figures([FAST, SLOW, SINGLE])
    assert result.itl.mean == pytest.approx((100 + 200 + 500) / 3)
    assert result.tpot.mean == pytest.approx((150 + 500) / 2)
    assert result.ttft.percentiles[50] == pytest.approx(200)
    assert result.ttft.percentiles[99] == pytest.approx(200 + 0.98 * 300)


def test_goodput_counts_requests_that_meet_every_limit() -> None:
    requests = [FAST, SLOW, SINGLE]
    assert figures(requests, Slo(ttft=250)).goodput == pytest.approx(1.0)
    assert figures(requests, Slo(ttft=250, tpot=100)).goodput == pytest.approx(0.5)  # SINGLE alone: its TPOT is 0
    assert figures(requests, Slo(ttft=250, tpot=100, e2el=100)).goodput == 0
    assert figures(requests).goodput is None


def test_limits_of_the_same_number_are_all_held() -> None:
    assert not Slo(ttft=300, tpot=300, e2el=300).is_met(FAST)
    assert Slo(ttft=400, tpot=400, e2el=400).is_met(FAST)


def test_failed_requests_are_counted_and_left_out() -> None:
    refused = record(0.5, error="RESOURCE_EXHAUSTED")
    silent = record(0.5)
    result = figures([FAST, refused, silent])
    assert (result.num_completed, result.num_failed) == (1, 2)
    assert result.errors == {"RESOURCE_EXHAUSTED": 1, "no token came": 1}
    assert (result.ttft.mean, result.e2el.mean) == pytest.approx((100, 400))


def test_who_answers_one_request_and_refuses_those_after_it_has_not_answered_them_in_its_time() -> None:
    answered, refused = record(0.0, 0.1), [record(float(second), error="X") for second in range(1, 10)]
    result = figures([answered, *refused], Slo(ttft=200))
    assert result.duration == pytest.approx(9.5)  # The last one is refused half a second after it was sent.
    assert result.goodput == result.request_throughput == pytest.approx(1 / 9.5)


def test_a_load_of_failures_has_no_figures() -> None:
    with pytest.raises(ValueError, match="none of 1 requests"):
        figures([record(0.0, error="X")])
