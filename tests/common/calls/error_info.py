"""What an error says of itself."""

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    call: Any = error
    status = rpc_status.from_call(call)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info
