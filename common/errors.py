"""Every refusal and failure that a caller can see, as a tree.

    DiptychError
    ├── InvalidArgumentError      the request is wrong; nobody should retry it
    ├── UnauthenticatedError      who are you?
    ├── PermissionDeniedError     not you
    ├── ResourceExhaustedError    slow down; `retry_after` says for how long
    ├── UnavailableError          not this pod, not now; another may
    ├── FailedPreconditionError   the deployment is wrong; an operator must act
    ├── AbortedError              the same request is already running
    ├── AlreadyExistsError        another request runs under this name
    ├── DeadlineExceededError     out of time
    ├── CancelledError            the caller left
    └── InternalError             our fault; one request is lost, `error_id` finds it in the log

Knows codes and reasons. Does not know gRPC: `common.calls.status` turns these into statuses. Messages are for
callers, so they never hold paths, addresses or exception texts; every value in a message is in `metadata`.
"""

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, Self

DOMAIN = "diptych.v1"
"""The `domain` of every ErrorInfo."""


class Code(Enum):
    """Status codes, named and numbered as in gRPC."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class DiptychError(Exception):
    """Base of the tree; never raised itself."""

    code: ClassVar[Code]

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Describe one failure.

        `reason` is UPPER_SNAKE and names one cause; `field` is the path of the request's field at fault,
        such as `sampling.top_p`; `retry_after` is in seconds.
        """
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after = retry_after

    def at(self, field: str) -> Self:
        """The same error, of another field."""
        return type(self)(self.reason, self.message, field=field, metadata=self.metadata, retry_after=self.retry_after)


class InvalidArgumentError(DiptychError):
    """The request is wrong, whoever serves it."""

    code = Code.INVALID_ARGUMENT


class UnauthenticatedError(DiptychError):
    """The caller did not prove who it is."""

    code = Code.UNAUTHENTICATED


class PermissionDeniedError(DiptychError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class ResourceExhaustedError(DiptychError):
    """The caller must slow down."""

    code = Code.RESOURCE_EXHAUSTED


class UnavailableError(DiptychError):
    """This pod cannot serve now; another may."""

    code = Code.UNAVAILABLE


class FailedPreconditionError(DiptychError):
    """The deployment is wrong."""

    code = Code.FAILED_PRECONDITION


class AbortedError(DiptychError):
    """The same request is already running."""

    code = Code.ABORTED


class AlreadyExistsError(DiptychError):
    """A different request is running under this name."""

    code = Code.ALREADY_EXISTS


class DeadlineExceededError(DiptychError):
    """The caller's time is up."""

    code = Code.DEADLINE_EXCEEDED


class CancelledError(DiptychError):
    """The caller left."""

    code = Code.CANCELLED


class InternalError(DiptychError):
    """Our fault, and this request alone is lost."""

    code = Code.INTERNAL
