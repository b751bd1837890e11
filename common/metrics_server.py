"""The HTTP port that Prometheus reads.

Knows the registry it was given. Does not know what is counted. It answers on threads of its own.
"""

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server


class MetricsServer:
    """Serves one registry while started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._running: tuple[WSGIServer, threading.Thread] | None = None

    @property
    def port(self) -> int | None:
        """The bound port; `None` while not started."""
        return None if self._running is None else self._running[0].server_port

    def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises SystemExit with one line where the port is taken."""
        try:
            self._running = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            reason = error.strerror or error
            raise SystemExit(f"cannot listen on {host}:{port} for metrics: {reason}") from None

    def stop(self) -> None:
        """Close the port; nothing happens where it is closed."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        server.shutdown()
        server.server_close()
        thread.join()
