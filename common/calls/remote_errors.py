"""Reads the status of a failed call back into the error that the other side raised.

The way back of `common.calls.status`, for a service that calls another one. Whatever a peer says that is not one of
our errors becomes the error that says the same to a caller of ours.
"""

import grpc

from common.client.types import to_client_error
from common.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    DiptychError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)

_ERRORS: dict[grpc.StatusCode, type[DiptychError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    # A server that is stopping cancels its calls; a cancellation of our own is not an error but an exception.
    grpc.StatusCode.CANCELLED: UnavailableError,
}


NOT_LET_IN = "NOT_LET_IN"
"""Reason of a peer that does not take this service's calls."""
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def from_rpc_error(error: grpc.aio.AioRpcError) -> DiptychError:
    """The error that a failed call stands for; any other status than those of our errors is INTERNAL.

    Where a peer refuses this service itself, that says nothing about our caller, and another peer may accept us.
    """
    if error.code() in _REFUSALS:
        return UnavailableError(NOT_LET_IN, "another service does not let this one in")
    kind = _ERRORS.get(error.code(), InternalError)
    read = to_client_error(error)
    if not read.reason:
        # A text that we did not write may name addresses and paths, so it goes no further.
        return kind(error.code().name, "the call to another service failed")
    return kind(read.reason, read.message, field=read.field, metadata=read.metadata, retry_after=read.retry_after)
