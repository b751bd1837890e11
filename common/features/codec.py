"""The messages of a stream of features as bytes, with fewer copies than generated code makes.

Knows the wire format of `EncodeResponse` in `vision.proto`. Does not know which messages may follow which (see
`common.features.features`). Generated code copies a chunk's data three times on either side: into the message, into its
bytes, and out again at each access. What is written here is what generated code writes, byte by byte; what is
read here is all that generated code reads: a message of any other form than the usual one goes through it.
"""

from dataclasses import dataclass

from diptych.v1 import vision_pb2

_CHUNK = 0x12
"""Tag of `EncodeResponse.chunk`: field 2, a message."""
_OFFSET, _DATA, _CRC32 = 0x08, 0x12, 0x1D
"""Tags of the fields of `FeaturesChunk`: a number, bytes, and four bytes."""
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes of the feature matrix."""

    offset: int
    data: memoryview
    crc32: int
    shared_size: int = 0
    """Bytes that are in shared memory, in place of `data`."""


def pack_chunk(chunk: Chunk) -> bytes:
    """An `EncodeResponse` with a chunk, in bytes; its data is copied once."""
    # Values of zero are not written, as everywhere in proto3.
    head = b"\x08" + _varint(chunk.offset) if chunk.offset else b""
    if chunk.data:
        head += b"\x12" + _varint(len(chunk.data))
    tail = b"\x1d" + chunk.crc32.to_bytes(4, "little") if chunk.crc32 else b""
    length = _varint(len(head) + len(chunk.data) + len(tail))
    return b"".join((b"\x12", length, head, chunk.data, tail))


def unpack(message: bytes) -> Chunk | vision_pb2.EncodeResponse:
    """A message of the stream: a chunk, whose data lies in `message`, or one of the others.

    Raises google.protobuf.message.DecodeError.
    """
    chunk = _usual_chunk(memoryview(message))
    if chunk is not None:
        return chunk
    response = vision_pb2.EncodeResponse.FromString(message)
    if response.WhichOneof("part") != "chunk":
        return response
    part = response.chunk
    return Chunk(part.offset, memoryview(part.data), part.crc32, part.shared_size)


def _usual_chunk(message: memoryview) -> Chunk | None:
    """A chunk whose fields stand in order, each at most once, with nothing else; None for all other messages."""
    try:
        if message[0] != _CHUNK:
            return None
        length, place = _read_varint(message, 1)
        if place + length != len(message):
            return None
        offset, data, crc32 = 0, message[:0], 0
        if place < len(message) and message[place] == _OFFSET:
            offset, place = _read_varint(message, place + 1)
        if place < len(message) and message[place] == _DATA:
            length, place = _read_varint(message, place + 1)
            data, place = message[place : place + length], place + length
        if place < len(message) and message[place] == _CRC32:
            crc32, place = int.from_bytes(message[place + 1 : place + 5], "little"), place + 5
    except (IndexError, ValueError):
        return None
    return Chunk(offset, data, crc32) if place == len(message) else None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number and the place after it. Raises IndexError, and ValueError where it is too long."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = message[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                raise ValueError
            return value, place + index + 1
    raise ValueError
