"""What a service looks at before it loads a model, so that a mistake is known in a moment and not in minutes.

Knows the server's settings. Opens nothing for good: whatever is right here is tried again when it is needed.
"""

from google.protobuf.internal import api_implementation

from common.process import raise_descriptor_limit
from common.security.access import Gate
from common.security.tls import MetricsTls, server_files
from common.server.config import ServerConfig
from common.server.ports import check_free

_OWN_DESCRIPTORS = 256
"""Descriptors that a process needs beside its connections: files, pipes of its workers, channels to others."""


def check_server(config: ServerConfig) -> None:
    """Raise ValueError where files cannot be used, or CannotListenError where a port is taken, each with one line."""
    for purpose, port in config.named_ports.items():
        check_free(config.host, port, purpose=purpose)
    if api_implementation.Type() != "upb":
        raise ValueError("protobuf runs without its native parser, whose limits on nesting we rely on")
    server_files(config.tls)
    if config.tls.tls_cert is not None:
        MetricsTls(config.tls)
    Gate(config.access, verifies_clients=config.tls.tls_client_ca is not None)
    needed = config.max_connections + _OWN_DESCRIPTORS
    if raise_descriptor_limit(needed) < needed:
        raise ValueError(
            f"--max-connections {config.max_connections} needs {needed} open files, more than this process may have"
        )
