"""Settings of the server that both services run.

Knows names, defaults, bounds and which of them go together, and what gRPC calls them. Opens no port.
"""

from dataclasses import dataclass, field
from typing import Final

from common.calls.channel_options import SERVER_OPTIONS
from common.security.access import AccessSettings
from common.security.tls import TlsSettings
from common.server.ports import LAST_PORT
from common.settings.settings import setting

_PING_EVERY_MS: Final = 3000
_PING_TIMEOUT_MS: Final = 2500


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a service listens and how it behaves towards callers."""

    tls: TlsSettings = field(default_factory=TlsSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    host: str = setting("127.0.0.1", help="address to listen on; 0.0.0.0 for every interface")
    port: int = setting(50051, help="port to listen on; 0 takes a free one", minimum=0, maximum=LAST_PORT)
    health_port: int | None = setting(
        None,
        help="port that answers health checks alone, always in plain text, for probes that cannot do TLS; none without",
        minimum=0,
        maximum=LAST_PORT,
    )
    metrics_port: int | None = setting(
        None, help="port of the Prometheus metrics; 0 takes a free one; none without", minimum=0, maximum=LAST_PORT
    )
    linger_seconds: float = setting(
        0.0,
        help="time after SIGTERM in which new calls are still taken, so that callers can hear of the end first",
        minimum=0,
        maximum=3600,
    )
    grace_seconds: float = setting(30.0, help="time that running calls then get to end", minimum=0, maximum=3600)
    stall_seconds: float = setting(
        30.0, help="time after which a call ends whose caller takes no more messages", minimum=0.1, maximum=86400
    )
    reflection: bool = setting(False, help="let callers list the services and their messages")
    max_message_bytes: int = setting(
        64 << 20, help="largest request message, in bytes", minimum=1 << 10, maximum=(1 << 31) - 1
    )
    max_metadata_bytes: int = setting(
        16 << 10, help="largest headers of a call, in bytes", minimum=1 << 10, maximum=1 << 20
    )
    max_connections: int = setting(1024, help="connections at the same time", minimum=1, maximum=1 << 20)
    max_concurrent_streams: int = setting(
        100,
        help="calls at the same time on one connection; clients should keep well below, as ours does by its max_calls",
        minimum=1,
        maximum=1 << 20,
    )

    def __post_init__(self) -> None:
        check_host(self.host)
        if self.access.allowed_clients and self.tls.tls_client_ca is None:
            raise ValueError("--allowed-clients needs --tls-client-ca: without certificates nobody has a name")
        if not self.verifies_callers and any(limit is not None for limit in self.access.limits):
            raise ValueError("limits for each caller need --auth-tokens or --tls-client-ca: nobody is known otherwise")
        ports = [port for port in self.named_ports.values() if port]
        if len(set(ports)) != len(ports):
            raise ValueError("--port, --health-port and --metrics-port must differ")

    @property
    def verifies_callers(self) -> bool:
        """Whether callers have to prove who they are."""
        return self.access.auth_tokens is not None or self.tls.tls_client_ca is not None

    @property
    def named_ports(self) -> dict[str, int]:
        """The ports to listen on, by the first word of their settings, which is none for that of calls."""
        ports = {"": self.port, "health": self.health_port, "metrics": self.metrics_port}
        return {name: port for name, port in ports.items() if port is not None}

    @property
    def channel_options(self) -> list[tuple[str, int]]:
        """The same for gRPC."""
        return [
            *SERVER_OPTIONS,
            # Without this a second server could bind the same port, and the two would share the callers.
            ("grpc.so_reuseport", 0),
            # Finds callers that are gone without a word, so that their work can stop.
            ("grpc.keepalive_time_ms", _PING_EVERY_MS),
            ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            # Between the two gRPC refuses at random, the more often the larger; we want a limit that is one.
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
        ]


def check_host(host: str) -> None:
    """Raise ValueError where nothing is named to listen on."""
    if not host:
        # Sockets take it for every interface, and a variable that is empty by mistake must not open the service.
        raise ValueError("--host '' names no address; 0.0.0.0 is every interface")


def check_image_fits(max_image_bytes: int, max_message_bytes: int) -> None:
    """Raise ValueError where the largest picture could never arrive."""
    if max_image_bytes >= max_message_bytes:
        raise ValueError(
            f"--max-image-bytes {max_image_bytes} does not fit into --max-message-bytes {max_message_bytes}"
        )
