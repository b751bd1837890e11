"""The HTTP port that Prometheus reads.

Knows the registry it was given, and TLS where it is asked for. Does not know what is counted. It answers on
threads of its own; a reader that says nothing keeps one of them for a few seconds, and nobody else waiting.
"""

import logging
import socket
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from common.security.tls import MetricsTls
from common.server.ports import CannotListenError, address, check_free

_MAX_READERS = 32
_READER_SECONDS = 10.0

_log = logging.getLogger(__name__)


class MetricsServer:
    """Serves one registry while started."""

    def __init__(self, registry: CollectorRegistry, *, tls: MetricsTls | None = None) -> None:
        self._registry = registry
        self._tls = tls
        self._running: tuple[_Server, threading.Thread] | None = None

    @property
    def port(self) -> int | None:
        """The bound port; `None` while not started."""
        return None if self._running is None else self._running[0].server_port

    def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises CannotListenError where the port is taken."""
        # Of each series the library would export the time of its first use too, which nothing asks for.
        disable_created_metrics()
        check_free(host, port, purpose="metrics")
        server_class = _Server6 if ":" in host else _Server
        try:
            server = make_server(host, port, make_wsgi_app(self._registry), server_class, handler_class=_Handler)
        except OSError as error:
            reason = error.strerror or error
            raise CannotListenError(f"cannot listen on {address(host, port)} for metrics: {reason}") from None
        server.tls = self._tls
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        self._running = server, thread

    def stop(self) -> None:
        """Close the port; nothing happens where it is closed."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingWSGIServer):
    """Does the handshake in the reader's thread, so that it holds up nobody, and has a bounded number of those."""

    tls: MetricsTls | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - socketserver's own
        self._places = threading.BoundedSemaphore(_MAX_READERS)
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if not self._places.acquire(timeout=_READER_SECONDS):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # There was no thread for it.
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        request.settimeout(_READER_SECONDS)
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls.context().wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        # A failed handshake or a reader that left; the default prints a traceback.
        _log.debug("a reader of the metrics got nothing", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: ANN401
        """Say nothing of every scrape."""
