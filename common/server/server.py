"""The server that both services run: health, metrics, reflection, and an orderly end.

Knows ports and the order in which a server stops. Does not know what it serves: add servicers to
`GrpcServer.grpc` before `start`.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from common.calls.interceptor import ErrorInterceptor
from common.errors import UnavailableError
from common.security.access import HEALTH, Gate
from common.security.certificate_metrics import CertificateCollector
from common.security.tls import MetricsTls, server_credentials, server_files
from common.server.config import ServerConfig
from common.server.health import HealthServicer
from common.server.metrics_server import MetricsServer
from common.server.ports import CannotListenError, address, check_free
from common.server.service_loop import ServiceLoop
from common.server.signals import termination_signals
from common.telemetry.spans import Tracer

_log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 1.0
"""Part of the grace time, at its end, in which calls that still run are answered."""


class GrpcServer:
    """A gRPC server on one port, with its health and, where asked for, metrics on another."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        registry: CollectorRegistry,
        service_names: Sequence[str] = (),
        tracer: Tracer | None = None,
    ) -> None:
        """Make a server that does not listen yet.

        `service_names` are the full names that reflection and health list. Raises ValueError where files that the
        settings name cannot be used.
        """
        self._config = config
        self._metrics = MetricsServer(registry, tls=MetricsTls(config.tls) if config.tls.tls_cert else None)
        self.certificates = CertificateCollector()
        """Tells of this server's certificate, and of others that it is told to watch."""
        registry.register(self.certificates)
        self._credentials = self._make_credentials()
        gate = Gate(
            config.access,
            verifies_clients=config.tls.tls_client_ca is not None,
            max_metadata_bytes=config.max_metadata_bytes,
        )
        self._errors = ErrorInterceptor(
            registry, gate=gate, tracer=tracer or Tracer(), stall_seconds=config.stall_seconds
        )
        self._health = HealthServicer(service_names)
        self.grpc = grpc.aio.server(interceptors=[self._errors], options=config.channel_options)
        """Servicers are added to this."""
        self.health_port: int | None = None
        """The bound port of the plain health checks; None where they are off or not started."""
        # Its calls are counted with all others.
        self._probes = grpc.aio.server(interceptors=[self._errors], options=config.channel_options)
        for server in (self.grpc, self._probes):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            reflection.enable_server_reflection((*service_names, HEALTH, reflection.SERVICE_NAME), self.grpc)

    @property
    def metrics_port(self) -> int | None:
        """The bound port of the metrics; `None` where they are off or not started."""
        return self._metrics.port

    def _make_credentials(self) -> grpc.ServerCredentials | None:
        files = server_files(self._config.tls)
        if files is None:
            return None
        self.certificates.watch("server", files)
        return server_credentials(files, asks_clients=self._config.tls.tls_client_ca is not None)

    def ask_first(self, check: Callable[[str], None]) -> None:
        """Have `check` told the /SERVICE/METHOD of each call that is let in, before its request is received.

        What it raises ends the call, so whoever has no room for any request refuses for next to nothing.
        """
        self._errors.check = check

    async def start(self) -> int:
        """Listen, say `listening HOST:PORT` in one line on standard output, and return the bound port.

        The process is alive from here on, and ready once `set_serving` says so. Raises CannotListenError
        where a port is taken.
        """
        config, host = self._config, self._config.host
        # All of them before any is bound: gRPC gives a port of a server that never started back only with the process.
        for purpose, wanted in config.named_ports.items():
            check_free(host, wanted, purpose=purpose)
        port = _bind(self.grpc, host, config.port, self._credentials)
        if config.health_port is not None:
            self.health_port = _bind(self._probes, host, config.health_port, None)
            await self._probes.start()
        if config.metrics_port is not None:
            self._metrics.start(host, config.metrics_port)
        await self.grpc.start()
        loop = asyncio.get_running_loop()
        if isinstance(loop, ServiceLoop) and not loop.knows_grpc:
            _log.warning("gRPC tells of its events in a way that is not known: each takes a turn of the loop")
        _log.info("listening", extra={"host": host, "port": port, "metrics_port": self.metrics_port})
        # A supervisor that let the port be chosen reads it here; it may have gone since.
        with suppress(OSError):
            sys.stdout.write(f"listening {address(host, port)}\n")
            sys.stdout.flush()
        return port

    def set_serving(self, service_names: Iterable[str], *, serving: bool = True) -> None:
        """State whether these services, given by full name, and with them the process are ready."""
        self._health.set_ready(service_names, serving)

    def set_alive(self, alive: bool) -> None:
        """State whether the process is worth keeping; a probe restarts it where it is not."""
        self._health.set_alive(alive)

    async def wait_for_termination(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop in order and return.

        In order: nothing is ready any more, but new calls are still taken for the linger time; new calls are
        refused and running ones get the grace time; those that still run are ended with UNAVAILABLE, reason
        DRAINING. A second signal ends both times at once.
        """
        with termination_signals() as signals:
            await signals.get()
            _log.info("draining", extra={"grace_seconds": self._config.grace_seconds})
            stopping = asyncio.create_task(self.stop())
            hurry = asyncio.create_task(signals.get())
            await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not stopping.done():
                _log.info("stopping at once")
                stopping.cancel()
                await self._stop_within(0)
            with suppress(asyncio.CancelledError):
                await stopping
        _log.info("stopped")

    async def stop(self) -> None:
        """Stop in the order of `wait_for_termination`."""
        if self._config.linger_seconds:
            self._health.drain()
            await asyncio.sleep(self._config.linger_seconds)
        await self._stop_within(self._config.grace_seconds)

    async def _stop_within(self, grace: float) -> None:
        last_words = min(_LAST_WORDS_SECONDS, grace / 2)
        stopping = asyncio.create_task(self.grpc.stop(max(grace, _LAST_WORDS_SECONDS)))
        # The port closes first, so that nobody who heard of the end can still get in.
        await asyncio.sleep(0)
        self._health.drain()
        await asyncio.wait({stopping}, timeout=grace - last_words)
        self._errors.open_calls.end(
            UnavailableError("DRAINING", "this replica is going away; another one can go on with the request")
        )
        await stopping
        await self._probes.stop(0)
        self._metrics.stop()


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    place = address(host, port)
    try:
        return server.add_insecure_port(place) if credentials is None else server.add_secure_port(place, credentials)
    except RuntimeError:
        raise CannotListenError(f"cannot listen on {place}") from None
