"""The messages of a stream of features as bytes, with fewer copies than generated code makes.

Knows the wire format of `EncodeResponse` in `vision.proto`. Does not know which messages may follow which (see
`common.features.features`). Generated code copies a chunk's data three times on either side: into the message, into its
bytes, and out again at each access. What is written here is what generated code writes, byte by byte; what is
read here is all that generated code reads: a message of any other form than the usual one goes through it.
"""

from functools import lru_cache
from typing import NamedTuple

from diptych.v1 import vision_pb2

_CHECKSUM = b"\x1d"
"""Tag of `FeaturesChunk.crc32`: four bytes follow."""
_TAIL_BYTES = 5
"""The checksum with its tag."""


class Chunk(NamedTuple):
    """A run of bytes of the feature matrix."""

    offset: int
    data: memoryview
    crc32: int
    shared_size: int = 0
    """Bytes that are in shared memory, in place of `data`."""


def pack_chunk(chunk: Chunk) -> bytes:
    """An `EncodeResponse` with a chunk, in bytes; its data is copied once."""
    # Values of zero are not written, as everywhere in proto3.
    tail = _CHECKSUM + chunk.crc32.to_bytes(4, "little") if chunk.crc32 else b""
    return b"".join((_head(chunk.offset, len(chunk.data), len(tail)), chunk.data, tail))


def unpack(message: bytes, *, offset: int) -> Chunk | vision_pb2.EncodeResponse:
    """A message of the stream: a chunk, or one of the others.

    The data of a chunk that begins at `offset` lies in `message`; that of another one, or of one some bytes shorter
    than 2**7, 2**14 or 2**21, is a copy. Raises google.protobuf.message.DecodeError.
    """
    # Nothing is taken apart: what the message must be like, if it is that chunk, follows from its length. After a
    # megabyte has been copied no code is in the caches any more, so that every step costs several times as much.
    size = len(message) - len(_head(offset, len(message), _TAIL_BYTES)) - _TAIL_BYTES
    if size > 0:
        head = _head(offset, size, _TAIL_BYTES)
        end = len(head) + size
        if message.startswith(head) and message.startswith(_CHECKSUM, end) and len(message) == end + _TAIL_BYTES:
            return Chunk(offset, memoryview(message)[len(head) : end], int.from_bytes(message[end + 1 :], "little"))
    response = vision_pb2.EncodeResponse.FromString(message)
    if response.WhichOneof("part") != "chunk":
        return response
    part = response.chunk
    return Chunk(part.offset, memoryview(part.data), part.crc32, part.shared_size)


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
