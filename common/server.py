"""The server that both services run: health, metrics, reflection, and an orderly end.

Knows ports, signals and the order in which a server stops. Does not know what it serves: add servicers to
`GrpcServer.grpc` before `start`.
"""

import asyncio
import errno
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from common.channel_options import SERVER_OPTIONS
from common.health import LIVENESS, READINESS, HealthServicer
from common.interceptor import ErrorInterceptor
from common.metrics_server import MetricsServer
from common.settings import setting

_log = logging.getLogger(__name__)

HEALTH: Final = "grpc.health.v1.Health"
_PING_EVERY_MS: Final = 3000
_PING_TIMEOUT_MS: Final = 2500

Drain = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a service listens and how it behaves towards callers."""

    host: str = setting("127.0.0.1", help="address to listen on; 0.0.0.0 for every interface")
    port: int = setting(50051, help="port to listen on; 0 takes a free one", minimum=0, maximum=65535)
    metrics_port: int | None = setting(
        None, help="port of the Prometheus metrics; 0 takes a free one; none without", minimum=0, maximum=65535
    )
    grace_seconds: float = setting(
        30.0, help="time that running calls get to end after SIGTERM", minimum=0, maximum=3600
    )
    reflection: bool = setting(False, help="let callers list the services and their messages")
    max_message_bytes: int = setting(
        64 << 20, help="largest request message, in bytes", minimum=1 << 10, maximum=(1 << 31) - 1
    )
    max_concurrent_streams: int = setting(
        100, help="calls at the same time on one connection", minimum=1, maximum=1 << 20
    )


class GrpcServer:
    """A gRPC server on one port, with its health and, where asked for, metrics on another."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        registry: CollectorRegistry,
        service_names: Sequence[str] = (),
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """Make a server that does not listen yet.

        `service_names` are the full names that reflection lists; `interceptors` run inside the one that
        answers errors.
        """
        self._config = config
        self._metrics = MetricsServer(registry)
        self._health = HealthServicer()
        self.grpc = grpc.aio.server(interceptors=[ErrorInterceptor(registry), *interceptors], options=_options(config))
        """Servicers are added to this."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if config.reflection:
            reflection.enable_server_reflection((*service_names, HEALTH, reflection.SERVICE_NAME), self.grpc)

    @property
    def metrics_port(self) -> int | None:
        """The bound port of the metrics; `None` where they are off or not started."""
        return self._metrics.port

    async def start(self) -> int:
        """Listen, say `listening HOST:PORT` in one line on standard output, and return the bound port.

        The process is alive from here on, and ready once `set_serving` says so. Raises SystemExit with one
        clear line where a port is taken.
        """
        port = self._bind()
        if self._config.metrics_port is not None:
            self._metrics.start(self._config.host, self._config.metrics_port)
        await self.grpc.start()
        _log.info("listening", extra={"host": self._config.host, "port": port, "metrics_port": self.metrics_port})
        # A supervisor that let the port be chosen reads it here; it may have gone since.
        with suppress(OSError):
            sys.stdout.write(f"listening {_address(self._config.host, port)}\n")
            sys.stdout.flush()
        return port

    def set_serving(self, service_names: Iterable[str], *, serving: bool = True) -> None:
        """State whether these services, given by full name, and with them the process are ready."""
        for name in (*service_names, READINESS):
            self._health.set(name, serving)

    def set_alive(self, alive: bool) -> None:
        """State whether the process is worth keeping; a probe restarts it where it is not."""
        self._health.set(LIVENESS, alive)

    async def wait_for_termination(self, drain: Drain | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then stop in order and return.

        In order: nothing is SERVING any more; `drain` runs; new calls are refused and running ones get what
        is left of the grace time. A second signal ends the grace at once.
        """
        with _termination_signals() as signals:
            await signals.get()
            _log.info("draining", extra={"grace_seconds": self._config.grace_seconds})
            stopping = asyncio.create_task(self.stop(drain))
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

    async def stop(self, drain: Drain | None = None) -> None:
        """Stop in the order of `wait_for_termination`."""
        end = time.monotonic() + self._config.grace_seconds
        self._health.drain()
        if drain is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(drain(), self._config.grace_seconds)
        await self._stop_within(max(0.0, end - time.monotonic()))

    async def _stop_within(self, grace: float) -> None:
        await self.grpc.stop(grace)
        self._metrics.stop()

    def _bind(self) -> int:
        host, port = self._config.host, self._config.port
        _check_free(host, port)
        try:
            return self.grpc.add_insecure_port(_address(host, port))
        except RuntimeError:
            raise SystemExit(f"cannot listen on {_address(host, port)}") from None


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        *SERVER_OPTIONS,
        # Without this a second server could bind the same port, and the two would share the callers.
        ("grpc.so_reuseport", 0),
        # Finds callers that are gone without a word, so that their work can stop.
        ("grpc.keepalive_time_ms", _PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
    ]


def _check_free(host: str, port: int) -> None:
    """Try the address with a plain socket: gRPC would explain a failure in several lines of its own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else "no such address here"
        raise SystemExit(f"cannot listen on {_address(host, port)}: {reason}") from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def _termination_signals() -> Iterator[asyncio.Queue[int]]:
    """The SIGTERMs and SIGINTs that arrive while inside."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[int] = asyncio.Queue()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, arrived.put_nowait, number)
    try:
        yield arrived
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
