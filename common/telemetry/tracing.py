"""Spans: which stretch of work belongs to which trace.

Knows names, times and how spans hang together. Does not know OpenTelemetry: what stands here records nothing and
passes the caller's context on; `common.telemetry.otel` records, and is imported only where an endpoint is set.
Times are seconds of the monotonic clock.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from common.settings.settings import setting
from common.telemetry.trace_context import TraceContext

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


class SpanKind(Enum):
    """Which side of a call a span is."""

    SERVER = "server"
    CLIENT = "client"


class Span:
    """A stretch of work that nobody records."""

    def __init__(self, context: TraceContext | None) -> None:
        """Stand for `context`, which what is called meanwhile gets to see."""
        self.context = context

    def start(self, name: str, *, kind: SpanKind) -> "Span":
        """A span inside this one, from now on; it must be ended."""
        return self

    def set(self, attributes: Attributes) -> None:
        """Say more about the span."""

    def record(self, name: str, *, start: float, end: float) -> None:
        """A span inside this one that is over."""

    def end(self, *, error: str | None = None) -> None:
        """The work is over, and failed where there is an `error`, a gRPC code's name."""


class Tracer:
    """Records nothing."""

    def start(self, name: str, *, parent: TraceContext | None, kind: SpanKind) -> Span:
        """A span for a call that came in with `parent`; it must be ended."""
        return Span(parent)

    def close(self) -> None:
        """Send what has not been sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSettings:
    """Where spans go."""

    otlp_endpoint: str | None = setting(
        None, help="OpenTelemetry collector to send traces to over gRPC, such as http://collector:4317; none without"
    )
    trace_sample_ratio: float = setting(
        1.0,
        minimum=0.0,
        maximum=1.0,
        help="part of the calls that begin a trace; one that came with a trace follows it",
    )

    def __post_init__(self) -> None:
        endpoint = self.otlp_endpoint
        if endpoint is not None and not re.fullmatch(r"(https?://)?([\w.-]+|\[[\da-fA-F:]+\])(:\d+)?/?", endpoint):
            raise ValueError(f"--otlp-endpoint {endpoint!r} is not http://HOST:PORT, https://HOST:PORT or HOST:PORT")


def make_tracer(settings: TracingSettings, *, service_name: str) -> Tracer:
    """What records as the settings say. Raises ValueError where it is asked for and not installed."""
    if settings.otlp_endpoint is None:
        return Tracer()
    try:
        from common.telemetry.otel import OtelTracer
    except ImportError as error:
        raise ValueError(f"--otlp-endpoint needs `pip install diptych[tracing]`: {error}") from None
    return OtelTracer(settings.otlp_endpoint, sample_ratio=settings.trace_sample_ratio, service_name=service_name)
