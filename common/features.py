"""Image features on the wire: what they must be, how they are sent, how they are checked as they arrive.

    EncodeResponse stream:   header   chunk(offset 0)   chunk(offset 1 MiB)   ...   end

Knows bytes and protobuf messages. Does not know tensors, channels or calls. The sender is not trusted: the
size of everything follows from the `FeatureSpec` that the receiver worked out by itself, a header that
disagrees is refused before a byte is written, and each chunk must be exactly the next one.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.errors import InternalError
from common.identity import ImageHash
from common.preprocessing import PatchGrid
from common.wire_types import DTYPE_SIZES, dtype_to_proto, grid_to_proto
from diptych.v1 import vision_pb2

CHUNK_SIZE = 1 << 20
"""Bytes in every chunk but the last. Between 1 and 2 MiB a stream is fastest; larger ones stall event loops."""
MAX_CHUNK_SIZE = 2 << 20
MIN_CHUNK_SIZE = 64 << 10

_EXPONENTS = {"float32": ("<u4", 0x7F800000), "bfloat16": ("<u2", 0x7F80), "float16": ("<u2", 0x7C00)}
"""Unsigned view of a value and its exponent bits; they are all ones exactly in infinities and NaNs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """What the features of one image must be."""

    image_hash: ImageHash
    grid: PatchGrid
    width: int
    """Values in a row."""
    dtype: str
    """"float32", "bfloat16" or "float16"; little-endian."""

    @property
    def num_bytes(self) -> int:
        """Size of the row-major matrix [grid.num_patches, width]."""
        return self.grid.num_patches * self.width * DTYPE_SIZES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTimings:
    """Where the time of one image went, in seconds."""

    queue: float
    preprocess: float
    encode: float


def feature_messages(
    spec: FeatureSpec, rows: memoryview, *, weights_digest: bytes, timings: EncodeTimings
) -> Iterator[vision_pb2.EncodeResponse]:
    """Send `rows` (`spec.num_bytes` bytes) as one header, chunks and one end."""
    yield vision_pb2.EncodeResponse(
        header=vision_pb2.FeaturesHeader(
            image_hash=spec.image_hash,
            grid=grid_to_proto(spec.grid),
            rows=spec.grid.num_patches,
            width=spec.width,
            dtype=dtype_to_proto(spec.dtype),
            weights_digest=weights_digest,
        )
    )
    num_chunks = 0
    for offset in range(0, len(rows), CHUNK_SIZE):
        data = bytes(rows[offset : offset + CHUNK_SIZE])
        num_chunks += 1
        yield vision_pb2.EncodeResponse(
            chunk=vision_pb2.FeaturesChunk(offset=offset, data=data, crc32=zlib.crc32(data))
        )
    yield vision_pb2.EncodeResponse(
        end=vision_pb2.FeaturesEnd(
            num_chunks=num_chunks,
            queue_seconds=timings.queue,
            preprocess_seconds=timings.preprocess,
            encode_seconds=timings.encode,
        )
    )


class FeatureReceiver:
    """Checks one stream and writes it to a buffer.

    After an error the buffer's content means nothing; after `finish` it is exactly what was sent. Every
    complaint is an InternalError: EMBED_INVALID where the sender means other features (or values that are
    not finite), EMBED_CORRUPT where the stream is broken.
    """

    def __init__(self, spec: FeatureSpec, buffer: memoryview) -> None:
        """Receive into `buffer`, `spec.num_bytes` bytes that nobody else touches. Raises ValueError."""
        if buffer.nbytes != spec.num_bytes or buffer.readonly:
            raise ValueError(f"a writable buffer of {spec.num_bytes} bytes is needed, got {buffer.nbytes}")
        self._spec = spec
        self._buffer = buffer.cast("B")
        self._has_header = False
        self._received = 0
        self._num_chunks = 0
        self._complete = False

    def receive(self, message: vision_pb2.EncodeResponse) -> None:
        """Take the next message of the stream. Raises InternalError."""
        if self._complete:
            raise _corrupt("a message follows the end")
        match message.WhichOneof("part"):
            case "header":
                self._take_header(message.header)
            case "chunk":
                self._take_chunk(message.chunk)
            case "end":
                self._take_end(message.end)
            case _:
                raise _corrupt("a message is empty")

    @property
    def is_complete(self) -> bool:
        """Whether all has been received."""
        return self._complete

    def finish(self) -> None:
        """Say that the stream is over. Raises InternalError where it was too early."""
        if not self._complete:
            raise _corrupt("the stream stopped before its end")

    def _take_header(self, header: vision_pb2.FeaturesHeader) -> None:
        if self._has_header:
            raise _corrupt("there is a second header")
        spec = self._spec
        if (
            header.image_hash != spec.image_hash
            or (header.grid.height, header.grid.width) != spec.grid
            or header.rows != spec.grid.num_patches
            or header.width != spec.width
            or header.dtype != dtype_to_proto(spec.dtype)
        ):
            raise InternalError("EMBED_INVALID", "the features are not those that were asked for")
        self._has_header = True

    def _take_chunk(self, chunk: vision_pb2.FeaturesChunk) -> None:
        if not self._has_header:
            raise _corrupt("a chunk comes before the header")
        data = chunk.data  # Every access makes a copy.
        end = self._received + len(data)
        if chunk.offset != self._received or end > len(self._buffer):
            raise _corrupt("a chunk is out of its place")
        if len(data) > MAX_CHUNK_SIZE or (len(data) < MIN_CHUNK_SIZE and end != len(self._buffer)) or not data:
            raise _corrupt("a chunk is of a wrong size")
        if zlib.crc32(data) != chunk.crc32:
            raise _corrupt("a chunk does not match its checksum")
        self._check_finite(data)
        self._buffer[self._received : end] = data
        self._received = end
        self._num_chunks += 1

    def _check_finite(self, data: bytes) -> None:
        kind, exponent = _EXPONENTS[self._spec.dtype]
        if len(data) % np.dtype(kind).itemsize:
            raise _corrupt("a chunk splits a value")
        # Chunk by chunk, so that an event loop is never held up by a whole image.
        if ((np.frombuffer(data, kind) & exponent) == exponent).any():
            raise InternalError("EMBED_INVALID", "the features are not all finite numbers")

    def _take_end(self, end: vision_pb2.FeaturesEnd) -> None:
        if not self._has_header or self._received != len(self._buffer) or end.num_chunks != self._num_chunks:
            raise _corrupt("the end comes before all rows")
        self._complete = True


def _corrupt(what: str) -> InternalError:
    return InternalError("EMBED_CORRUPT", f"the stream of features is broken: {what}")
