"""Options of the Python client's channels: when calls are repeated, and how connections are watched.

Knows gRPC's settings. Does not know calls.
"""

import json
from typing import Final

from common.calls.channel_options import CLIENT_OPTIONS

Options = tuple[tuple[str, int | str], ...]

SERVICE: Final = "diptych.v1.GenerationService"
_SERVICE_CONFIG: Final = {
    # One of several addresses that goes away takes only those calls along that it has answered.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Retries stop while more than about one call in ten fails, so that they cannot multiply an overload.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
_OPTIONS: Final[dict[str, int | str]] = {
    **dict(CLIENT_OPTIONS),
    "grpc.enable_retries": 1,
    "grpc.service_config": json.dumps(_SERVICE_CONFIG),
    # A proxy for web pages, which the environment may name, is no way to a server of this kind.
    "grpc.enable_http_proxy": 0,
    # The server says what is too large.
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
}


def channel_options(server_name: str) -> Options:
    """Options of a channel to a server whose certificate has this name, or that of its address where it is empty."""
    return (*_OPTIONS.items(), *server_name_options(server_name))


def server_name_options(server_name: str) -> tuple[tuple[str, str], ...]:
    """Options by which a server's certificate must have this name; none where it is empty."""
    return (("grpc.ssl_target_name_override", server_name),) if server_name else ()
