"""An error that one service raises is the error that the other one reads, and nothing foreign comes through."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc.aio import AioRpcError, Metadata

from common.calls.remote_errors import from_rpc_error
from common.calls.status import status_code, to_trailers
from common.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    DiptychError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

KINDS = (
    *(InvalidArgumentError, ResourceExhaustedError, UnavailableError),
    *(FailedPreconditionError, AbortedError, AlreadyExistsError, DeadlineExceededError, InternalError),
)


REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("field", "retry_after"), [(None, None), ("image", 1.5), ("image", 0.0)])
def test_every_error_survives_the_way(kind: type[DiptychError], field: str | None, retry_after: float | None) -> None:
    sent = kind("SOME_REASON", "a text", field=field, metadata={"limit": 1, "got": 2}, retry_after=retry_after)
    read = from_rpc_error(
        AioRpcError(status_code(sent), Metadata(), Metadata(*to_trailers(sent)), details=sent.message)
    )
    assert type(read) is kind
    assert (read.reason, read.message, read.field) == ("SOME_REASON", "a text", field)
    assert (read.metadata, read.retry_after) == ({"limit": "1", "got": "2"}, retry_after)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_foreign_statuses_lose_their_text(code: grpc.StatusCode) -> None:
    read = from_rpc_error(AioRpcError(code, Metadata(), Metadata(), details="ipv4:10.0.0.1:50051 refused"))
    assert "10.0.0.1" not in read.message
    assert read.reason == ("NOT_LET_IN" if code in REFUSALS else code.name)
    if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DATA_LOSS):
        assert isinstance(read, InternalError)


@pytest.mark.parametrize(("seconds", "expected"), [(2**62, 3600.0), (-(2**62), 0.0), (-1, 0.0), (2, 2.0)])
def test_a_delay_is_read_as_one_that_can_be_waited_for(seconds: int, expected: float) -> None:
    delay = RetryInfo(retry_delay=Duration(seconds=seconds))
    status = Status(code=8, message="full", details=[Any(), Any()])
    status.details[0].Pack(ErrorInfo(reason="FULL"))
    status.details[1].Pack(delay)
    trailers = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    read = from_rpc_error(AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, Metadata(), trailers, details="full"))
    assert isinstance(read, ResourceExhaustedError)
    assert read.retry_after == expected


@pytest.mark.parametrize("kind", [UnauthenticatedError, PermissionDeniedError])
def test_a_service_that_is_not_let_in_is_not_its_callers_fault(kind: type[DiptychError]) -> None:
    sent = kind("TOKEN_EXPIRED", "the token has expired")
    read = from_rpc_error(
        AioRpcError(status_code(sent), Metadata(), Metadata(*to_trailers(sent)), details=sent.message)
    )
    assert isinstance(read, UnavailableError)
    assert "token" not in f"{read.reason} {read.message}".lower()


def test_a_call_that_a_stopping_server_cancelled_may_be_tried_elsewhere() -> None:
    assert isinstance(from_rpc_error(AioRpcError(grpc.StatusCode.CANCELLED, Metadata(), Metadata())), UnavailableError)
