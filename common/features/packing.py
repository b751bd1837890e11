"""Image features on their way out: made messages of a stream, see `common.features.features`.

Knows bytes and protobuf messages. Does not know tensors, channels or calls.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from zlib_ng.zlib_ng import crc32

from common.features.codec import Chunk, pack_chunk, unpack
from common.features.features import EncodeTimings, FeatureSpec
from common.features.wire_types import dtype_to_proto, grid_to_proto
from diptych.v1 import vision_pb2

CHUNK_SIZE = 1 << 20
"""Bytes in every chunk but the last; `benchmarks.transport` says why."""


def pack_rows(rows: memoryview) -> tuple[bytes, ...]:
    """The chunks of a whole feature matrix, each an `EncodeResponse` in bytes."""
    chunks = (rows[offset : offset + CHUNK_SIZE] for offset in range(0, len(rows), CHUNK_SIZE))
    return tuple(pack_chunk(Chunk(index * CHUNK_SIZE, data, crc32(data))) for index, data in enumerate(chunks))


def unpack_rows(chunks: Iterable[bytes]) -> Iterator[Chunk]:
    """What `pack_rows` packed."""
    offset = 0
    for message in chunks:
        chunk = unpack(message, offset=offset)
        if isinstance(chunk, Chunk):
            offset += len(chunk.data)
            yield chunk


def feature_messages(
    spec: FeatureSpec, chunks: Sequence[bytes], *, weights_digest: bytes, timings: EncodeTimings
) -> Iterator[bytes]:
    """Send what `pack_rows` gave as one header, chunks and one end; each an `EncodeResponse` in bytes."""
    yield header_message(spec, weights_digest=weights_digest)
    yield from chunks
    yield end_message(len(chunks), timings=timings)


def shared_feature_messages(
    spec: FeatureSpec,
    chunks: Sequence[bytes],
    *,
    region: vision_pb2.SharedRegion,
    write: Callable[[int, memoryview], None],
    weights_digest: bytes,
    timings: EncodeTimings,
) -> Iterator[bytes]:
    """The same, with the rows in a region of shared memory; `write` puts bytes at a place in it."""
    yield header_message(spec, weights_digest=weights_digest, shared=region)
    for chunk in unpack_rows(chunks):
        write(chunk.offset, chunk.data)
        message = vision_pb2.FeaturesChunk(offset=chunk.offset, shared_size=len(chunk.data), crc32=chunk.crc32)
        yield vision_pb2.EncodeResponse(chunk=message).SerializeToString()
    yield end_message(len(chunks), timings=timings)


def header_message(spec: FeatureSpec, *, weights_digest: bytes, shared: vision_pb2.SharedRegion | None = None) -> bytes:
    """The first message of a stream."""
    header = vision_pb2.FeaturesHeader(
        image_hash=spec.image_hash,
        grid=grid_to_proto(spec.grid),
        rows=spec.grid.num_patches,
        width=spec.width,
        dtype=dtype_to_proto(spec.dtype),
        weights_digest=weights_digest,
        shared=shared,
    )
    return vision_pb2.EncodeResponse(header=header).SerializeToString()


def end_message(num_chunks: int, *, timings: EncodeTimings) -> bytes:
    """The last message of a stream."""
    end = vision_pb2.FeaturesEnd(
        num_chunks=num_chunks,
        queue_seconds=timings.queue,
        preprocess_seconds=timings.preprocess,
        encode_seconds=timings.encode,
    )
    return vision_pb2.EncodeResponse(end=end).SerializeToString()
