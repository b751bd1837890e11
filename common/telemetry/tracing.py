"""Whether calls are traced, and by what: chosen once, when a service starts.

Knows the settings. Imports what knows OpenTelemetry (`otel`) only where an endpoint is set.
"""

import re
from dataclasses import dataclass

from common.settings.settings import setting
from common.telemetry.spans import Tracer


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
