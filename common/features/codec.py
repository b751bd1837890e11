"""The messages of a stream of features as bytes, with fewer copies than generated code makes.

Knows the wire format of `EncodeResponse` in `vision.proto`. Does not know which messages may follow which (see
`common.features.features`). Generated code copies a chunk's data three times on either side: into the message, into its
bytes, and out again at each access. A chunk is written here exactly as generated code writes it, byte for byte. It is
the last field of its message, behind a header or an end: so its place follows from the message's length, and a header
or an end can be put before a chunk that is packed already. Nothing that generated code can read is refused here: a
message of an unusual form is handed to it.
"""

from functools import lru_cache
from typing import NamedTuple

from diptych.v1 import vision_pb2

_CHECKSUM = b"\x1d"
"""Tag of `FeaturesChunk.crc32`: four bytes follow."""
_SHARED_SIZE = b"\x20"
"""Tag of `FeaturesChunk.shared_size`."""
_TAIL_BYTES = 5
"""The checksum with its tag."""
_OTHER_TAGS = (b"\x0a", b"\x1a")
"""Of `EncodeResponse.header` and `EncodeResponse.end`: their length follows."""
_MAX_OTHER_PARTS = 3
"""As many as a message is given here: a header, and an end in two pieces."""


class Chunk(NamedTuple):
    """A run of bytes of the feature matrix."""

    offset: int
    data: memoryview
    crc32: int
    shared_size: int = 0
    """Bytes that are in shared memory, in place of `data`."""


class Parts(NamedTuple):
    """What is in a message; None for what is not."""

    chunk: Chunk | None
    header: vision_pb2.FeaturesHeader | None = None
    end: vision_pb2.FeaturesEnd | None = None


def pack(
    chunk: Chunk, *, header: vision_pb2.FeaturesHeader | None = None, end: vision_pb2.FeaturesEnd | None = None
) -> bytes:
    """An `EncodeResponse` in bytes; the chunk's data is copied once."""
    # Values of zero are not written, as everywhere in proto3.
    tail = _CHECKSUM + chunk.crc32.to_bytes(4, "little") if chunk.crc32 else b""
    if chunk.shared_size:
        tail += _SHARED_SIZE + _varint(chunk.shared_size)
    before = _other_parts(header, end)
    return b"".join((before, _head(chunk.offset, len(chunk.data), len(tail)), chunk.data, tail))


def put_before(
    message: bytes, *, header: vision_pb2.FeaturesHeader | None = None, end: vision_pb2.FeaturesEnd | None = None
) -> bytes:
    """A copy of a packed message with a header or an end added; what it has of them already is merged."""
    return _other_parts(header, end) + message


def _other_parts(header: vision_pb2.FeaturesHeader | None, end: vision_pb2.FeaturesEnd | None) -> bytes:
    return vision_pb2.EncodeResponse(header=header, end=end).SerializeToString()


def unpack(message: bytes, *, offset: int) -> Parts:
    """The parts of a message of the stream.

    The data of a chunk that begins at `offset` and is the last field is a view of `message`, except for sizes a few
    bytes below 2**7, 2**14 or 2**21. Any other chunk's data is a copy. Raises google.protobuf.message.DecodeError.
    """
    chunk = _usual_chunk(message, 0, offset)
    if chunk is not None:
        return Parts(chunk)
    start = _chunk_start(message)
    chunk = _usual_chunk(message, start, offset)
    response = vision_pb2.EncodeResponse.FromString(message[:start] if chunk is not None else message)
    if response.HasField("chunk"):
        part = response.chunk
        chunk = Chunk(part.offset, memoryview(part.data), part.crc32, part.shared_size)
    return Parts(
        chunk,
        response.header if response.HasField("header") else None,
        response.end if response.HasField("end") else None,
    )


def _chunk_start(message: bytes) -> int:
    """Where the chunk begins in a message of the usual form: behind a header, an end or both, which are short."""
    start = 0
    for _ in range(_MAX_OTHER_PARTS):
        if message.startswith(_OTHER_TAGS, start) and start + 1 < len(message) and message[start + 1] < 0x80:
            start += 2 + message[start + 1]
    return start


def _usual_chunk(message: bytes, start: int, offset: int) -> Chunk | None:
    """The chunk that fills a message from `start` on, if it is one of the usual form that begins at `offset`."""
    # Nothing is taken apart: what the message must be like, if it is that chunk, follows from its length. After a
    # megabyte has been copied no code is in the caches any more, so that every step costs several times as much.
    head, size = _usual_form(offset, len(message) - start)
    begin = start + len(head)
    end = begin + size
    if size and message.startswith(head, start) and message.startswith(_CHECKSUM, end):
        return Chunk(offset, memoryview(message)[begin:end], int.from_bytes(message[end + 1 :], "little"))
    return None


@lru_cache(maxsize=4096)
def _usual_form(offset: int, length: int) -> tuple[bytes, int]:
    """What stands before the data of a chunk of the usual form, and the data's size; 0 where none is as long."""
    room = length - _TAIL_BYTES
    size = room - len(_head(offset, room, _TAIL_BYTES)) if room > 0 else 0
    head = _head(offset, size, _TAIL_BYTES) if size > 0 else b""
    return (head, size) if size > 0 and len(head) + size == room else (b"", 0)


@lru_cache(maxsize=4096)
def _head(offset: int, data_size: int, tail_size: int) -> bytes:
    """What stands before a chunk's data; the same for all streams, whose chunks are alike."""
    fields = b"\x08" + _varint(offset) if offset else b""
    if data_size:
        fields += b"\x12" + _varint(data_size)
    return b"\x12" + _varint(len(fields) + data_size + tail_size) + fields


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
