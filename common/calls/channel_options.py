"""Options of the channels between the services; the two sides only work as a pair.

A frozen peer still acknowledges TCP, so only pings find it: one goes out after `_PING_EVERY_MS` of silence,
and without an answer within `_PING_TIMEOUT_MS` the connection is given up, which fails its calls with
UNAVAILABLE. Both timeouts below are needed: gRPC honours the first only together with the second. A server
that has not been told to expect so many pings would answer them by closing the connection.
"""

from typing import Final

Options = tuple[tuple[str, int], ...]

_PING_EVERY_MS: Final = 2500
_PING_TIMEOUT_MS: Final = 2500

CLIENT_OPTIONS: Final[Options] = (
    ("grpc.keepalive_time_ms", _PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    # Idle connections are watched too, so that a dead replica is known before a request needs it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The client retries by itself, elsewhere.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # One connection per channel, though two channels have the same address.
    ("grpc.use_local_subchannel_pool", 1),
)
"""For the client of a service inside the deployment."""

SERVER_OPTIONS: Final[Options] = (
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_EVERY_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
)
"""For every server that such clients connect to."""
