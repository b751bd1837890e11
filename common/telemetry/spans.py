"""Spans: which stretch of work belongs to which trace.

Knows names, times and how spans hang together. Does not know OpenTelemetry: what stands here records nothing and
passes the caller's context on (see `otel` for what records). Times are seconds of the monotonic clock.
"""

from collections.abc import Mapping, Sequence
from enum import Enum

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
