"""`diptych info`: what a service of either kind serves, and within which limits.

Knows how the fields of GetModelInfo are shown. Does not know what they mean.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from typing import Any

import grpc
from google.protobuf.message import Message

from common.client.types import ClientError, to_client_error
from diptych import connection
from diptych.flags import complaint, seconds
from diptych.v1 import vision_pb2, vision_pb2_grpc


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `diptych info`."""
    parser.add_argument("--timeout", type=seconds, default=10.0, metavar="SECONDS", help="default: 10")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    connection.add_arguments(parser)


def run(options: Namespace) -> int:
    """Ask and print; returns the exit status. Raises ClientError where the server does not answer."""
    try:
        fields = to_plain(_model_info(options))
    except ValueError as error:
        sys.stderr.write(f"diptych info: {complaint(error)}\n")
        return 2
    if options.json:
        print(json.dumps(fields))
        return 0
    width = max(map(len, fields))
    for name, value in fields.items():
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):{width}}  {shown}")
    return 0


def _model_info(options: Namespace) -> Message:
    """What a decoder service says of itself, or where it is none, a vision service."""
    try:
        with connection.connect(options) as client:
            return client.get_model_info(timeout=options.timeout)
    except ClientError as error:
        if error.code is not grpc.StatusCode.UNIMPLEMENTED:
            raise
    token = connection.token(options)
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    with connection.open_channel(options) as channel:
        request = vision_pb2.VisionServiceGetModelInfoRequest()
        try:
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            return stub.GetModelInfo(request, timeout=options.timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise to_client_error(error) from None


def to_plain(message: Message) -> dict[str, Any]:
    """A message's fields by name: bytes in hexadecimal, enumeration values by name, absent ones left out."""
    return {
        field.name: _plain(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain(field: Any, value: Any) -> Any:  # noqa: ANN401 - as protobuf has it
    if isinstance(value, Message):
        return to_plain(value)
    if isinstance(value, bytes):
        return value.hex()
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return list(value) if field.is_repeated else value
