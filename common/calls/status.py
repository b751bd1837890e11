"""Turns errors into gRPC statuses.

Knows google.rpc's details: one ErrorInfo always, BadRequest for a field, RetryInfo for a delay. Does not know
which call failed. Texts are cut, so that the details stay under 4 KiB whatever an error says: trailers over
8 KiB are dropped by some peers together with the connection.
"""

from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from common.errors import DOMAIN, Code, DiptychError

Trailers = tuple[tuple[str, str | bytes], ...]

_MAX_MESSAGE_BYTES = 512
_MAX_FIELD_BYTES = 256
_MAX_METADATA = 8
_MAX_KEY_BYTES = 64
_MAX_VALUE_BYTES = 200
_MAX_RETRY_SECONDS = 3600.0

_STATUS_CODES = {code: grpc.StatusCode[code.name] for code in Code}


def status_code(error: DiptychError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return _STATUS_CODES[error.code]


def status_message(error: DiptychError) -> str:
    """The text of an error's status."""
    return _cut(error.message, _MAX_MESSAGE_BYTES)


def to_rpc_status(error: DiptychError) -> Status:
    """The status message of an error, with its details; under 4 KiB."""
    message = status_message(error)
    details: list[Message] = [
        ErrorInfo(domain=DOMAIN, reason=_cut(error.reason, _MAX_KEY_BYTES), metadata=_cut_metadata(error.metadata))
    ]
    if error.field is not None:
        violation = BadRequest.FieldViolation(field=_cut(error.field, _MAX_FIELD_BYTES), description=message)
        details.append(BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(_retry_milliseconds(error.retry_after))
        details.append(RetryInfo(retry_delay=delay))
    return Status(code=error.code.value, message=message, details=[_pack(detail) for detail in details])


def to_trailers(error: DiptychError) -> Trailers:
    """The trailing metadata of an error: its status, and the delay in gRPC's own words.

    `grpc-retry-pushback-ms` makes a client's gRPC library wait that long before it retries by itself.
    """
    trailers: Trailers = tuple(rpc_status.to_status(to_rpc_status(error)).trailing_metadata)
    if error.retry_after is not None:
        trailers += (("grpc-retry-pushback-ms", str(_retry_milliseconds(error.retry_after))),)
    return trailers


def _pack(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _retry_milliseconds(seconds: float) -> int:
    return round(min(max(0.0, seconds), _MAX_RETRY_SECONDS) * 1000)


def _cut_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    kept = list(metadata.items())[:_MAX_METADATA]
    return {_cut(key, _MAX_KEY_BYTES): _cut(value, _MAX_VALUE_BYTES) for key, value in kept}


def _cut(text: str, max_bytes: int) -> str:
    # Through bytes, because protobuf refuses the lone surrogates that a caller's text may hold.
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")
