"""What a service says of its own health. Does not know who asks, or what for."""

from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


def health_status(address: str, name: str = "readiness") -> int | None:
    """Its status under a name, SERVING for one; None where nobody answers within five seconds, or has no such name."""
    # A web proxy that the environment may name is no way to a service that is asked so.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
        try:
            return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status)
        except grpc.RpcError:
            return None
