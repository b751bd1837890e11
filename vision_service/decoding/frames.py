"""Messages between the service and its decode workers: two lengths, a small JSON header, raw bytes.

Knows bytes. Does not know what a message means, nor pipes or event loops. Nothing is unpickled: a worker
that a hostile file has taken over can send wrong pixels, but no code.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

PREFIX = struct.Struct("<II")
"""Length of the JSON header and length of the payload, in bytes."""


def pack_head(header: Mapping[str, object], *, payload_size: int) -> bytes:
    """Everything of a message that goes before its payload."""
    encoded = json.dumps(header).encode()
    return PREFIX.pack(len(encoded), payload_size) + encoded


def parse_header(encoded: bytes) -> dict[str, Any]:
    """The header of a message. Raises ValueError where it is no JSON object."""
    try:
        header = json.loads(encoded)
    except RecursionError:
        raise ValueError("a message header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("a message header is a JSON object")
    return header
