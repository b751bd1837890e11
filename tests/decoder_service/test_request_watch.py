"""What is told of a request by the end of it, whatever that was."""

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from common.call import Call, handling
from common.errors import DeadlineExceededError, InternalError, InvalidArgumentError
from common.trace_context import TraceContext
from common.tracing import Span
from decoder_service.request_metrics import RequestMetrics
from decoder_service.request_status import FinishReason
from decoder_service.request_watch import RequestWatch, watching
from decoder_service.timings import Timings

TIMINGS = Timings(queue=0.3, encode_wait=0.2, prefill=0.1, decode=0.9)


def finish(watch: RequestWatch) -> None:
    watch.named("r1", {})
    watch.admitted(prompt_tokens=7, num_images=2)
    watch.first_token()
    watch.first_token()
    watch.finished(
        FinishReason.STOP,
        TIMINGS,
        prompt_tokens=7,
        cached_tokens=4,
        images_not_encoded=1,
        completion_tokens=10,
        timed_tokens=4,
    )


def test_a_finished_request_is_counted_once_and_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    registry = CollectorRegistry()
    with watching(RequestMetrics(registry)) as watch:
        finish(watch)
        # A caller that leaves after the last message makes no second end of it.
        watch.ended(GeneratorExit())
    expected = {
        "diptych_request_success_total": 1,
        "diptych_time_to_first_token_seconds_count": 1,
        "diptych_e2e_request_latency_seconds_count": 1,
        "diptych_request_queue_time_seconds_sum": 0.3,
        "diptych_request_encode_wait_seconds_sum": 0.2,
        "diptych_request_prefill_time_seconds_sum": 0.1,
        "diptych_request_decode_time_seconds_sum": 0.9,
        "diptych_request_time_per_output_token_seconds_sum": 0.3,
        "diptych_prompt_tokens_total": 7,
        "diptych_prompt_tokens_cached_total": 4,
        "diptych_request_images_sum": 2,
    }
    labels = {"diptych_request_success_total": {"finished_reason": "stop"}}
    found = {name: registry.get_sample_value(name, labels.get(name, {})) for name in expected}
    assert found == pytest.approx(expected)
    (record,) = caplog.records
    assert (record.message, vars(record)["outcome"], vars(record)["completion_tokens"]) == (
        "request finished", "stop", 10,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (InvalidArgumentError("PROMPT_TOO_LONG", "x"), "error", "PROMPT_TOO_LONG"),
        (InternalError("NUMERIC_ERROR", "x"), "error", "NUMERIC_ERROR"),
        (RuntimeError("a secret"), "error", "INTERNAL"),
        (DeadlineExceededError("DEADLINE_EXCEEDED", "x"), "deadline", "DEADLINE_EXCEEDED"),
        (asyncio.CancelledError(), "abort", "CANCELLED"),
        (GeneratorExit(), "abort", "CANCELLED"),
    ],
)
@pytest.mark.parametrize("admitted", [False, True])
def test_a_request_that_does_not_finish_is_counted_where_it_belongs(
    error: BaseException, outcome: str, reason: str, admitted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    registry = CollectorRegistry()

    def run() -> None:
        with watching(RequestMetrics(registry)) as watch:
            if admitted:
                watch.admitted(prompt_tokens=1, num_images=0)
            raise error

    with pytest.raises(type(error)):
        run()
    refused = registry.get_sample_value("diptych_admission_rejections_total", {"reason": reason})
    failed = registry.get_sample_value("diptych_request_failures_total", {"reason": reason})
    ended = registry.get_sample_value("diptych_request_success_total", {"finished_reason": outcome})
    is_error = outcome == "error"
    assert (refused or 0, failed or 0) == (is_error and not admitted, is_error and admitted)
    assert ended == (0 if is_error and not admitted else 1)
    (record,) = caplog.records
    assert (vars(record)["outcome"], vars(record)["reason"]) == (
        "refused" if is_error and not admitted else outcome, reason,
    )  # fmt: skip
    assert "secret" not in repr(vars(record))


@pytest.mark.parametrize("sampled", [False, True])
def test_histograms_point_to_a_trace_that_somebody_keeps(sampled: bool) -> None:
    registry = CollectorRegistry()
    call = Call(Span(TraceContext("ab" * 16, "cd" * 8, sampled=sampled)))
    with handling(call), watching(RequestMetrics(registry)) as watch:
        finish(watch)
    text = generate_latest(registry).decode()
    exemplars = {
        family.name: sample.exemplar.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    }
    if sampled:
        assert exemplars["diptych_time_to_first_token_seconds"] == {"trace_id": "ab" * 16}
        assert exemplars["diptych_e2e_request_latency_seconds"] == {"trace_id": "ab" * 16}
    else:
        assert not exemplars
