"""Counts and traces the calls of a server, and makes each the current one while it is handled.

Knows methods, metadata and statuses. Does not know what a method does or how its errors become statuses (see
`interceptor`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from prometheus_client import CollectorRegistry

from common.calls.call import Call, handling
from common.calls.metrics import CallMetrics
from common.calls.reasons import ReasonCounter
from common.telemetry.spans import Span, SpanKind, Tracer
from common.telemetry.trace_context import HEADER, parse_traceparent

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_PROBES = frozenset({"GetLoad", "GetModelInfo", "Check", "Watch", "ServerReflectionInfo"})
"""Methods that are asked every second, and begin no trace."""


@dataclass(slots=True)
class Outcome:
    """How a call ends."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str | None = None
    """Of the error that the caller sees, where it is one of ours."""


class CallObserver:
    """Looks at every call of a server."""

    def __init__(self, registry: CollectorRegistry, tracer: Tracer) -> None:
        self._metrics = CallMetrics(registry)
        self._errors = ReasonCounter(
            "diptych_call_errors",
            "Calls that ended with an error of ours, whoever was at fault.",
            registry=registry,
            expected=("INTERNAL", "CALLER_NOT_ALLOWED", "CALLER_CALLS_PER_MINUTE", "CALLER_TOKENS_PER_MINUTE"),
        )
        self._tracer = tracer

    @contextmanager
    def observed(self, path: str, context: Context) -> Iterator[Outcome]:
        """Observe the call of `/service/method` while inside; whoever handles it says how it ends."""
        metrics = self._metrics.of(path)
        metrics.start()
        span = self._span(path, context)
        outcome = Outcome()
        try:
            # aio says None where the caller set no deadline; its stubs say float.
            with handling(Call(span, seconds=context.time_remaining())):
                yield outcome
        finally:
            metrics.end(outcome.code)
            if outcome.reason is not None:
                self._errors.count(outcome.reason)
            span.set({"rpc.response.status_code": outcome.code.name})
            span.end(error=None if outcome.code is grpc.StatusCode.OK else outcome.code.name)

    def _span(self, path: str, context: Context) -> Span:
        """The span of a call, in the trace that it came with."""
        _, service, method = path.split("/")
        # The last of several, as with any repeated header.
        found = dict(context.invocation_metadata() or ()).get(HEADER)
        parent = parse_traceparent(found) if isinstance(found, str) else None
        if parent is None and method in _PROBES:
            return Span(None)
        span = self._tracer.start(path[1:], parent=parent, kind=SpanKind.SERVER)
        span.set({"rpc.system.name": "grpc", "rpc.service": service, "rpc.method": method})
        return span
