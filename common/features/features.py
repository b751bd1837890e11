"""Image features on the wire: what they must be, and how they are checked as they arrive.

    EncodeResponse stream:   header, chunk(offset 0)   chunk(offset 2 MiB)   ...   chunk(offset 2n MiB), end

Knows bytes and protobuf messages. Does not know tensors, channels or calls. The sender is not trusted: the
size of everything follows from the `FeatureSpec` that the receiver worked out by itself, a header that
disagrees is refused before a byte is written, and each chunk must be exactly the next one. A chunk out of the stream is
put in its place while its successor is read, so what is wrong in its bytes is found when that one comes, or at the end.
"""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from common.errors import InternalError
from common.features.chunk_copy import CopyChunk, Copying, copy_plainly
from common.features.codec import Chunk, unpack
from common.features.feature_spec import VALUE_TYPES, FeatureSpec
from common.features.wire_types import dtype_to_proto
from diptych.v1 import vision_pb2

MAX_CHUNK_SIZE = 2 << 20
MIN_CHUNK_SIZE = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTimings:
    """Where the time of one image went, in seconds."""

    queue: float
    preprocess: float
    encode: float


class FeatureReceiver:
    """Checks one stream and writes it to a buffer, which is in use until `close`.

    After an error the buffer's content means nothing; after `finish` it is exactly what was sent. Every
    complaint is an InternalError: EMBED_INVALID where the sender means other features (or values that are
    not finite), EMBED_CORRUPT where the stream is broken.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        buffer: memoryview,
        *,
        shared: memoryview | None = None,
        copy: CopyChunk = copy_plainly,
    ) -> None:
        """Receive into `buffer`, `spec.num_bytes` bytes that nobody else touches. Raises ValueError.

        `shared` is memory that the sender may use in place of the stream, where it was mapped. `copy` puts the chunks
        in place.
        """
        if buffer.nbytes != spec.num_bytes or buffer.readonly:
            raise ValueError(f"a writable buffer of {spec.num_bytes} bytes is needed, got {buffer.nbytes}")
        self._spec = spec
        self._buffer = buffer.cast("B")
        self._shared = shared
        self._copy = copy
        self._region: memoryview | None = None
        self.lease: int | None = None
        """What to tell the sender when all is received, where the rows are in shared memory."""
        self._has_header = False
        self._received = 0
        self._num_chunks = 0
        self._under_way: Copying | None = None
        """The last chunk, until it was found to be right."""
        self._checksum = 0
        """What it must have."""
        self._has_end = False

    def receive(self, message: bytes) -> None:
        """Take the next message of the stream, an `EncodeResponse` in bytes. Raises InternalError."""
        self._settle()
        try:
            chunk, header, end = unpack(message, offset=self._received)
        except DecodeError as error:
            raise _corrupt("a message is malformed") from error
        if self._has_end:
            raise _corrupt("a message follows the end")
        if chunk is None:
            raise _corrupt("a message has no chunk")
        if header is not None:
            self._take_header(header)
        self._take_chunk(chunk)
        if end is not None:
            self._take_end(end)

    @property
    def is_complete(self) -> bool:
        """Whether all is in its place and was found to be right."""
        return self._has_end and self._under_way is None

    def finish(self) -> None:
        """Say that the stream is over. Raises InternalError where it was too early, or its last chunk wrong."""
        self._settle()
        if not self._has_end:
            raise _corrupt("the stream stopped before its end")

    def close(self) -> None:
        """Touch the buffer no more, whatever has come."""
        if self._under_way is not None:
            self._under_way.wait()

    def _settle(self) -> None:
        """Look at what was found of the last chunk, whose message is let go. Raises InternalError."""
        if self._under_way is None:
            return
        copied = self._under_way.wait()
        if copied.crc32 != self._checksum:
            raise _corrupt("a chunk does not match its checksum")
        if not copied.is_finite:
            raise InternalError("EMBED_INVALID", "the features are not all finite numbers")
        self._under_way = None

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
        if header.HasField("shared"):
            self._take_region(header.shared)
        self._has_header = True

    def _take_region(self, region: vision_pb2.SharedRegion) -> None:
        """Find the rows in shared memory. Nothing but their place is taken from the sender."""
        size = self._spec.num_bytes
        if self._shared is None or region.size != size or region.offset + size > len(self._shared):
            raise InternalError("EMBED_INVALID", "the features are not where they are said to be")
        self._region = self._shared[region.offset : region.offset + size]
        self.lease = region.lease

    def _take_chunk(self, chunk: Chunk) -> None:
        if not self._has_header:
            raise _corrupt("a chunk comes before the header")
        size = len(chunk.data) if self._region is None else chunk.shared_size
        end = self._received + size
        if (chunk.shared_size > 0) != (self._region is not None) or (chunk.shared_size and chunk.data):
            raise _corrupt("a chunk is not where the header says")
        if chunk.offset != self._received or end > len(self._buffer):
            raise _corrupt("a chunk is out of its place")
        if size > MAX_CHUNK_SIZE or (size < MIN_CHUNK_SIZE and end != len(self._buffer)) or not size:
            raise _corrupt("a chunk is of a wrong size")
        if size % VALUE_TYPES[self._spec.dtype].size:
            raise _corrupt("a chunk splits a value")
        # Chunk by chunk, so that an event loop is never held up by a whole image.
        data = chunk.data if self._region is None else self._region[self._received : end]
        self._under_way = self._copy(self._buffer[self._received : end], data, self._spec.dtype)
        self._checksum = chunk.crc32
        if self._region is not None:
            self._settle()  # It lies in the sender's memory, which is no longer ours once the end is here.
        self._received = end
        self._num_chunks += 1

    def _take_end(self, end: vision_pb2.FeaturesEnd) -> None:
        if self._received != len(self._buffer) or end.num_chunks != self._num_chunks:
            raise _corrupt("the end comes before all rows")
        self._has_end = True


def _corrupt(what: str) -> InternalError:
    return InternalError("EMBED_CORRUPT", f"the stream of features is broken: {what}")
