"""Held against OpenTelemetry's own propagator."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.telemetry.trace_context import TraceContext, parse_traceparent

GOOD = f"00-{'ab' * 16}-{'cd' * 8}-01"


def reference(text: str) -> TraceContext | None:
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    found = trace.get_current_span(context).get_span_context()
    if not found.is_valid:
        return None
    return TraceContext(
        trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id), sampled=found.trace_flags.sampled
    )


@pytest.mark.parametrize(
    "text",
    [
        GOOD, GOOD[:-1] + "0", GOOD[:-2] + "ff", "01" + GOOD[2:] + "-more", "ff" + GOOD[2:], GOOD + "-more",
        GOOD.upper(), GOOD[:-1], "", "00-" + "0" * 32 + GOOD[35:], GOOD[:36] + "0" * 16 + "-01", "x" * 100_000,
    ],
)  # fmt: skip
def test_a_traceparent_means_what_opentelemetry_says_it_means(text: str) -> None:
    assert parse_traceparent(text) == reference(text)


@given(st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_any_text_of_the_right_form_means_the_same(text: str) -> None:
    assert parse_traceparent(text) == reference(text)


@given(st.text(max_size=80))
def test_any_other_text_is_no_context_and_no_error(text: str) -> None:
    assert parse_traceparent(text) is None


def test_what_is_written_is_read_back() -> None:
    context = TraceContext("ab" * 16, "cd" * 8, sampled=False)
    assert parse_traceparent(str(context)) == context
