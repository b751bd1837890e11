"""Makes a client's call part of the trace that its application is in.

Knows OpenTelemetry's API, where the application has imported it; else it does nothing and imports nothing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

Metadata = tuple[tuple[str, str], ...]


@contextmanager
def traced(method: str, metadata: Metadata) -> Iterator[Metadata]:
    """A span of the call, from now to the end, and the metadata that tells the server of it."""
    if "opentelemetry.trace" not in sys.modules:
        yield metadata
        return
    from opentelemetry import propagate, trace

    span = trace.get_tracer("diptych.client").start_span(method, kind=trace.SpanKind.CLIENT)
    headers: dict[str, str] = {}
    propagate.inject(headers, trace.set_span_in_context(span))
    try:
        yield (*metadata, *headers.items())
    except Exception:
        span.set_status(trace.StatusCode.ERROR)
        raise
    finally:
        span.end()
