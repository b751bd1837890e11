"""Records spans with OpenTelemetry and sends them to a collector, over OTLP and gRPC.

Knows the SDK. Does not know what is traced. Imported only where an endpoint is set. The exporter heeds what the
environment says besides (`OTEL_EXPORTER_OTLP_HEADERS`, `_CERTIFICATE`, `_TIMEOUT`, `OTEL_RESOURCE_ATTRIBUTES`). Spans
are sent in batches by a thread of its own; where nobody takes them they are dropped, and requests go on.
"""

import time

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from common.telemetry.spans import Attributes, Span, SpanKind, Tracer
from common.telemetry.trace_context import TraceContext
from common.version import API_VERSION

_KINDS = {SpanKind.SERVER: trace.SpanKind.SERVER, SpanKind.CLIENT: trace.SpanKind.CLIENT}


class OtelTracer(Tracer):
    """Records the calls that their callers have sampled, and a part of those that come without a trace."""

    def __init__(self, endpoint: str, *, sample_ratio: float, service_name: str) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create({"service.name": service_name, "service.version": API_VERSION}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://") or None)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("diptych")

    def start(self, name: str, *, parent: TraceContext | None, kind: SpanKind) -> Span:
        """A span for a call that came in with `parent`; it must be ended."""
        return _OtelSpan(self._tracer, _start(self._tracer, name, parent=_to_otel(parent), kind=kind))

    def close(self) -> None:
        """Send what has not been sent, which may take as long as the exporter's timeout."""
        self._provider.shutdown()


class _OtelSpan(Span):
    """A span that is recorded, or, where it is not sampled, one that says so to whoever is called."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        found = span.get_span_context()
        super().__init__(
            TraceContext(
                trace.format_trace_id(found.trace_id),
                trace.format_span_id(found.span_id),
                sampled=found.trace_flags.sampled,
            )
        )
        self._tracer = tracer
        self._span = span

    def start(self, name: str, *, kind: SpanKind) -> Span:
        """A span inside this one, from now on; it must be ended."""
        return _OtelSpan(self._tracer, _start(self._tracer, name, parent=self._span, kind=kind))

    def set(self, attributes: Attributes) -> None:
        """Say more about the span."""
        self._span.set_attributes(dict(attributes))

    def record(self, name: str, *, start: float, end: float) -> None:
        """A span inside this one that is over."""
        # Both clocks are read anew: the wall clock may have been set since.
        offset = time.time_ns() - time.monotonic_ns()
        context = trace.set_span_in_context(self._span)
        span = self._tracer.start_span(name, context, start_time=offset + int(start * 1e9))
        span.end(offset + int(end * 1e9))

    def end(self, *, error: str | None = None) -> None:
        """The work is over, and failed where there is an `error`, a gRPC code's name."""
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


def _start(tracer: trace.Tracer, name: str, *, parent: trace.Span | None, kind: SpanKind) -> trace.Span:
    context = trace.set_span_in_context(parent) if parent is not None else None
    return tracer.start_span(name, context, kind=_KINDS[kind])


def _to_otel(parent: TraceContext | None) -> trace.Span | None:
    if parent is None:
        return None
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
    found = trace.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return trace.NonRecordingSpan(found)
