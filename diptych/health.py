"""`diptych health`: whether a service says that it serves; for probes, with TLS where a kubelet has none.

Knows the standard health service. Exits with 0 where the name is SERVING, with 1 where it is not or nobody answers.
"""

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from diptych import connection
from diptych.flags import seconds


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `diptych health`."""
    parser.add_argument(
        "name",
        nargs="?",
        default="readiness",
        help="startup, liveness, readiness or a service's full name; default: readiness",
    )
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="SECONDS", help="default: 5")
    connection.add_arguments(parser)


def run(options: Namespace) -> int:
    """Ask and print; returns the exit status."""
    try:
        opened = connection.open_channel(options)
    except ValueError as error:
        sys.stderr.write(f"diptych health: {error}\n")
        return 2
    with opened as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=options.name), timeout=options.timeout)
        except grpc.RpcError as error:
            call: Any = error  # what a call raises is a Call too
            print(f"{call.code().name}: {call.details()}{connection.hint(options, call.code(), call.details())}")
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1
