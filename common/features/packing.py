"""Image features on their way out: made messages of a stream once, and sent as often as they are asked for.

Knows bytes and protobuf messages. Does not know tensors, channels or calls. Adding a field to a message of a megabyte
means copying it, which takes about as long as sending a small message of its own. So whole messages are kept, and only
timings are added when they are sent; an image that was encoded before has none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from zlib_ng.zlib_ng import crc32

from common.features.codec import Chunk, pack, put_before, unpack
from common.features.feature_spec import FeatureSpec
from common.features.features import EncodeTimings
from common.features.wire_types import dtype_to_proto, grid_to_proto
from diptych.v1 import vision_pb2

CHUNK_SIZE = 2 << 20
"""Bytes in every chunk but the last; `benchmarks.transport` says why."""


def pack_rows(rows: memoryview, *, header: vision_pb2.FeaturesHeader | None = None) -> tuple[bytes, ...]:
    """A whole feature matrix, of one row or more, as messages, each an `EncodeResponse` in bytes.

    They are a stream as soon as they have a header, now or by `with_header`.
    """
    num_chunks = -(-len(rows) // CHUNK_SIZE)
    end = vision_pb2.FeaturesEnd(num_chunks=num_chunks)
    offsets = range(0, len(rows), CHUNK_SIZE)
    chunks = (rows[offset : offset + CHUNK_SIZE] for offset in offsets)
    return tuple(
        pack(
            Chunk(offset, data, crc32(data)),
            header=header if offset == 0 else None,
            end=end if offset == offsets[-1] else None,
        )
        for offset, data in zip(offsets, chunks, strict=True)
    )


def with_header(messages: Sequence[bytes], header: vision_pb2.FeaturesHeader) -> tuple[bytes, ...]:
    """The stream of what `pack_rows` packed without one."""
    return put_before(messages[0], header=header), *messages[1:]


def unpack_rows(messages: Iterable[bytes]) -> Iterator[Chunk]:
    """The chunks that `pack_rows` packed."""
    offset = 0
    for message in messages:
        chunk = unpack(message, offset=offset).chunk
        if chunk is not None:
            offset += len(chunk.data)
            yield chunk


def feature_messages(messages: Sequence[bytes], *, timings: EncodeTimings) -> Iterator[bytes]:
    """A packed stream with the times of this call."""
    end = vision_pb2.FeaturesEnd()
    _set_times(end, timings)
    yield from messages[:-1]
    yield put_before(messages[-1], end=end) if end.ByteSize() else messages[-1]


def shared_feature_messages(
    spec: FeatureSpec,
    messages: Sequence[bytes],
    *,
    region: vision_pb2.SharedRegion,
    write: Callable[[int, memoryview], None],
    weights_digest: bytes,
    timings: EncodeTimings,
) -> Iterator[bytes]:
    """The same with the rows in a region of shared memory; `write` puts bytes at a place in it."""
    header = feature_header(spec, weights_digest=weights_digest, shared=region)
    end = vision_pb2.FeaturesEnd(num_chunks=len(messages))
    _set_times(end, timings)
    for number, chunk in enumerate(unpack_rows(messages), start=1):
        write(chunk.offset, chunk.data)
        yield pack(
            Chunk(chunk.offset, memoryview(b""), chunk.crc32, shared_size=len(chunk.data)),
            header=header if number == 1 else None,
            end=end if number == len(messages) else None,
        )


def feature_header(
    spec: FeatureSpec, *, weights_digest: bytes, shared: vision_pb2.SharedRegion | None = None
) -> vision_pb2.FeaturesHeader:
    """What the first message of a stream says of its rows."""
    return vision_pb2.FeaturesHeader(
        image_hash=spec.image_hash,
        grid=grid_to_proto(spec.grid),
        rows=spec.grid.num_patches,
        width=spec.width,
        dtype=dtype_to_proto(spec.dtype),
        weights_digest=weights_digest,
        shared=shared,
    )


def _set_times(end: vision_pb2.FeaturesEnd, timings: EncodeTimings) -> None:
    end.queue_seconds, end.preprocess_seconds, end.encode_seconds = timings.queue, timings.preprocess, timings.encode
