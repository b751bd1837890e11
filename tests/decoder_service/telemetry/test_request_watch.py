"""What is told of a request by the end of it, whatever that was."""

import asyncio
import logging
import time

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from common.calls.call import Call, handling
from common.errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    DiptychError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from common.security.principal import Principal, acting_for
from common.telemetry.spans import Span
from common.telemetry.trace_context import TraceContext
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.timings import Timings
from decoder_service.telemetry.request_metrics import OUTCOMES, RequestMetrics
from decoder_service.telemetry.request_watch import RequestWatch, watching

TIMINGS = Timings(queue=0.3, encode_wait=0.2, prefill=0.1, decode=0.9)


def finish(watch: RequestWatch) -> None:
    watch.named("r1", {})
    watch.admitted(at=time.monotonic(), prompt_tokens=7, num_images=2)
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


# By the error's kind: before the request was admitted, and after.
OUTCOMES_OF_ERRORS: dict[type[DiptychError], tuple[str, str]] = {
    InvalidArgumentError: ("refused", "refused"),
    UnauthenticatedError: ("refused", "refused"),
    PermissionDeniedError: ("refused", "refused"),
    ResourceExhaustedError: ("refused", "refused"),
    AbortedError: ("refused", "refused"),
    AlreadyExistsError: ("refused", "refused"),
    UnavailableError: ("refused", "error"),
    FailedPreconditionError: ("refused", "error"),
    DeadlineExceededError: ("deadline", "deadline"),
    CancelledError: ("abort", "abort"),
    InternalError: ("error", "error"),
}
ENDS: list[tuple[BaseException, tuple[str, str], str]] = [
    *((kind("SOME_REASON", "x"), outcomes, "SOME_REASON") for kind, outcomes in OUTCOMES_OF_ERRORS.items()),
    (RuntimeError("a secret"), ("error", "error"), "INTERNAL"),
    (asyncio.CancelledError(), ("abort", "abort"), "CANCELLED"),
    (GeneratorExit(), ("abort", "abort"), "CANCELLED"),
]


def test_every_kind_of_error_is_in_the_table() -> None:
    assert OUTCOMES_OF_ERRORS.keys() == set(DiptychError.__subclasses__())


@pytest.mark.parametrize(("error", "outcomes", "reason"), ENDS)
@pytest.mark.parametrize("admitted", [False, True])
def test_a_request_that_does_not_finish_is_counted_where_it_belongs(
    error: BaseException, outcomes: tuple[str, str], reason: str, admitted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    registry = CollectorRegistry()
    outcome = outcomes[admitted]
    assert end(registry, error, admitted=admitted) is error
    assert counted(registry, reason) == ({"error": 1, "failed": 1} if outcome == "error" else {outcome: 1})
    (record,) = caplog.records
    assert (vars(record)["outcome"], vars(record)["reason"]) == (outcome, reason)
    assert "secret" not in repr(vars(record))
    known = {name: vars(record).get(name) for name in ("prompt_tokens", "images", "completion_tokens", "caller")}
    counts = (7, 2, 5) if admitted else (None, None, None)
    assert tuple(known.values()) == (*counts, "alice")


@pytest.mark.parametrize("left", [asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize(
    ("seconds", "used", "outcome"),
    [
        (None, 1000.0, "abort"),
        (1.0, 0.5, "abort"),
        (1.0, 0.98, "deadline"),
        (1.0, 1.5, "deadline"),
        # 12.34 s become 12.4 s on their way to us.
        (12.4, 12.34, "deadline"),
        (12.4, 11.0, "abort"),
    ],
)
def test_a_caller_who_leaves_when_its_time_is_up_ran_out_of_time(
    seconds: float | None, used: float, outcome: str, left: BaseException
) -> None:
    registry = CollectorRegistry()
    call = Call(Span(None), seconds=seconds, begun_at=time.monotonic() - used)
    with handling(call):
        end(registry, left, admitted=True)
    assert counted(registry, "CANCELLED") == {outcome: 1}
    assert call.is_overdue == (outcome == "deadline")


def test_what_the_server_ends_a_call_with_is_how_it_ended() -> None:
    registry = CollectorRegistry()
    with handling(Call(Span(None), ending=UnavailableError("DRAINING", "x"))):
        end(registry, asyncio.CancelledError(), admitted=True)
    assert counted(registry, "DRAINING") == {"error": 1, "failed": 1}


def end(registry: CollectorRegistry, error: BaseException, *, admitted: bool) -> BaseException:
    """Run a request that ends with an error; what comes out."""

    def run() -> None:
        with acting_for(Principal("alice")), watching(RequestMetrics(registry)) as watch:
            if admitted:
                watch.admitted(at=time.monotonic(), prompt_tokens=7, num_images=2, count_completion_tokens=lambda: 5)
            raise error

    with pytest.raises(type(error)) as raised:
        run()
    return raised.value


def counted(registry: CollectorRegistry, reason: str) -> dict[str, float]:
    """Which of the counters of ends are not 0."""
    refused = registry.get_sample_value("diptych_admission_rejections_total", {"reason": reason})
    failed = registry.get_sample_value("diptych_request_failures_total", {"reason": reason})
    ended = {
        outcome: registry.get_sample_value("diptych_request_success_total", {"finished_reason": outcome})
        for outcome in OUTCOMES
    }
    counts = {**ended, "refused": refused, "failed": failed}
    return {name: count for name, count in counts.items() if count}


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
