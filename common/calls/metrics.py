"""Counts calls by method and by status, under the names that gRPC dashboards expect.

Knows names and labels. Does not know what a method does. What is counted of a method is looked up once, and only
methods that exist get that far, so a caller cannot fill the metrics with names of its own.
"""

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge

_WATCHED = (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


class MethodMetrics:
    """What is counted of one method."""

    def __init__(self, started: Counter, in_flight: Gauge, handled: Counter, labels: tuple[str, str]) -> None:
        self._started = started.labels(*labels)
        self._in_flight = in_flight.labels(*labels)
        self._handled = handled
        self._labels = labels
        # Prometheus sees no growth in a series that comes with its first event, and these must be seen.
        self._by_code = {code: handled.labels(*labels, code.name) for code in _WATCHED}

    def start(self) -> None:
        """Count a call that begins."""
        self._started.inc()
        self._in_flight.inc()

    def end(self, code: grpc.StatusCode) -> None:
        """Count its end."""
        self._in_flight.dec()
        if code not in self._by_code:
            self._by_code[code] = self._handled.labels(*self._labels, code.name)
        self._by_code[code].inc()


class CallMetrics:
    """What is counted of all methods of a server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_service", "grpc_method")
        self._started = Counter("grpc_server_started", "Calls started.", labels, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls ended, by status.", (*labels, "grpc_code"), registry=registry
        )
        self._in_flight = Gauge("grpc_server_in_flight", "Calls being handled.", labels, registry=registry)
        self._methods: dict[str, MethodMetrics] = {}

    def of(self, path: str) -> MethodMetrics:
        """What is counted of the method `/service/method`, which must exist."""
        if path not in self._methods:
            _, service, method = path.split("/")
            self._methods[path] = MethodMetrics(self._started, self._in_flight, self._handled, (service, method))
        return self._methods[path]
