"""The bytes written mean to generated code what they shall, and what is read is what generated code reads."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from common.features.codec import Chunk, pack, put_before, unpack
from diptych.v1 import vision_pb2

Message = vision_pb2.EncodeResponse
NUMBERS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 127, 128, 2**20, 2**32, 2**63])
CHUNKS = st.builds(
    lambda offset, data, crc32: vision_pb2.FeaturesChunk(offset=offset, data=data, crc32=crc32),
    NUMBERS,
    st.binary(max_size=300),
    st.integers(0, 2**32 - 1) | st.just(0),
)
HEADER = vision_pb2.FeaturesHeader(image_hash=b"h" * 32, rows=3, width=1024, weights_digest=b"d" * 32)
HEADERS = st.none() | st.just(HEADER) | st.builds(lambda name: vision_pb2.FeaturesHeader(image_hash=name), st.binary())
TIMES = vision_pb2.FeaturesEnd(queue_seconds=1, preprocess_seconds=2, encode_seconds=3)
ENDS = st.none() | st.just(TIMES) | st.builds(lambda count: vision_pb2.FeaturesEnd(num_chunks=count), st.integers(0, 9))

Read = tuple[tuple[int, bytes, int, int] | None, vision_pb2.FeaturesHeader | None, vision_pb2.FeaturesEnd | None]


def read(message: bytes, *, offset: int = 0) -> Read | None:
    """What our code reads that expects a chunk at a place; None where it refuses."""
    try:
        chunk, header, end = unpack(message, offset=offset)
    except DecodeError:
        return None
    return (chunk.offset, bytes(chunk.data), chunk.crc32, chunk.shared_size) if chunk else None, header, end


def read_by_generated_code(message: bytes) -> Read | None:
    try:
        response = Message.FromString(message)
    except DecodeError:
        return None
    chunk = response.chunk
    return (
        (chunk.offset, chunk.data, chunk.crc32, chunk.shared_size) if response.HasField("chunk") else None,
        response.header if response.HasField("header") else None,
        response.end if response.HasField("end") else None,
    )


def ours(chunk: vision_pb2.FeaturesChunk) -> Chunk:
    return Chunk(chunk.offset, memoryview(chunk.data), chunk.crc32, chunk.shared_size)


@settings(max_examples=300, deadline=None)
@given(chunk=CHUNKS, header=HEADERS)
def test_chunks_are_written_and_read_as_generated_code_does(
    chunk: vision_pb2.FeaturesChunk, header: vision_pb2.FeaturesHeader | None
) -> None:
    message = Message(header=header, chunk=chunk).SerializeToString()
    assert pack(ours(chunk), header=header) == message
    for offset in (chunk.offset, 5):
        assert read(message, offset=offset) == ((chunk.offset, chunk.data, chunk.crc32, 0), header, None)


def test_chunks_in_shared_memory_are_written_as_generated_code_does() -> None:
    for crc32 in (0, 7):
        chunk = vision_pb2.FeaturesChunk(offset=2**20, crc32=crc32, shared_size=2**20)
        assert pack(ours(chunk)) == Message(chunk=chunk).SerializeToString()
        assert read(pack(ours(chunk)), offset=2**20) == ((2**20, b"", crc32, 2**20), None, None)


@settings(max_examples=300, deadline=None)
@given(chunk=CHUNKS, header=HEADERS, end=ENDS)
def test_any_parts_together_are_read_by_generated_code_as_they_were_written(
    chunk: vision_pb2.FeaturesChunk, header: vision_pb2.FeaturesHeader | None, end: vision_pb2.FeaturesEnd | None
) -> None:
    together = Message(header=header, chunk=chunk, end=end)
    at_once = pack(ours(chunk), header=header, end=end)
    later = put_before(pack(ours(chunk), end=end), header=header)
    for message in (at_once, later, together.SerializeToString()):
        assert Message.FromString(message) == together
        assert read(message, offset=chunk.offset) == read_by_generated_code(message)


def test_an_end_in_two_pieces_is_one() -> None:
    counted = pack(Chunk(0, memoryview(b"rows"), 7), end=vision_pb2.FeaturesEnd(num_chunks=1))
    whole = vision_pb2.FeaturesEnd(num_chunks=1)
    whole.MergeFrom(TIMES)
    assert read(put_before(counted, end=TIMES)) == ((0, b"rows", 7, 0), None, whole)


OTHERS = {
    "nothing": ((), ()),
    "a header": ((HEADER,), ()),
    "an end": ((), (TIMES,)),
    "both": ((HEADER,), (TIMES,)),
    "an end in two pieces": ((HEADER,), (TIMES, vision_pb2.FeaturesEnd(num_chunks=41))),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("offset", [0, 2**20, 41 * 2**20])
@pytest.mark.parametrize("size", [2, 100, 128, 2**14 + 2, 2**20, 2**20 - 2])
def test_a_chunk_in_its_place_is_read_without_a_copy(offset: int, size: int, name: str) -> None:
    data = (bytes(range(256)) * 4096)[:size]
    message = pack(Chunk(offset, memoryview(data), 7))
    headers, ends = OTHERS[name]
    for end in ends:
        message = put_before(message, end=end)
    for header in headers:
        message = put_before(message, header=header)
    parts = unpack(message, offset=offset)
    assert parts.chunk is not None
    assert parts.chunk.data.obj is message
    assert parts.chunk.data == data
    assert (parts.header is not None, parts.end is not None) == (bool(headers), bool(ends))


def test_a_chunk_before_other_parts_is_read_with_a_copy() -> None:
    message = Message(chunk=vision_pb2.FeaturesChunk(data=b"rows", crc32=7), end=TIMES).SerializeToString()
    chunk, _, end = unpack(message, offset=0)
    assert chunk is not None
    assert chunk.data.obj is not message
    assert (bytes(chunk.data), end) == (b"rows", TIMES)


def test_messages_without_a_chunk_have_none() -> None:
    for header, end in ((None, None), (HEADER, None), (None, TIMES), (HEADER, TIMES)):
        assert read(Message(header=header, end=end).SerializeToString()) == (None, header, end)


PLAIN = pack(Chunk(5, memoryview(b"ab"), 7))
LOOKS_SHORT = b"\x0a\x80\x00" + b"\x7a\x89\x01" + bytes(124) + PLAIN
"""A header without bytes, a field of a later version, and in it, where the length's first byte points, a chunk."""


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x0a", id="a tag alone"),
        pytest.param(b"\x1a\x7f", id="a length over the end"),
        pytest.param(b"\x0a\x7f" + PLAIN, id="a length over the end, into the chunk"),
        pytest.param(b"\x0a\x80\x00" + PLAIN, id="a length longer than needed"),
        pytest.param(LOOKS_SHORT, id="a length longer than needed, before what looks like a chunk"),
        pytest.param(b"\x0a\x02\xff\xff" + PLAIN, id="a header that is none"),
        pytest.param(b"\x0a\x00" * 2 + PLAIN, id="a header twice"),
        pytest.param(b"\x0a\x00\x1a\x00" * 20 + PLAIN, id="many parts"),
        pytest.param(PLAIN + PLAIN, id="a chunk twice"),
        pytest.param(b"\x7a\x01x" + PLAIN, id="a field of a later version"),
        pytest.param(put_before(PLAIN, header=vision_pb2.FeaturesHeader(image_hash=bytes(300))), id="a long header"),
    ],
)
def test_unusual_parts_mean_what_they_mean_to_generated_code(message: bytes) -> None:
    for offset in (0, 5):
        assert read(message, offset=offset) == read_by_generated_code(message)


@pytest.mark.parametrize("behind", [b"\x00", b"\x7a", b"\x7a\x00"])
def test_what_is_behind_a_chunk_is_not_passed_over(behind: bytes) -> None:
    """Where its length takes one byte more, or is about to."""
    for size in (*range(100, 140), *range(2**14 - 30, 2**14 + 10)):
        message = pack(Chunk(5, memoryview(bytes(size)), 7))
        assert read(message + behind, offset=5) == read_by_generated_code(message + behind)
        assert read(message, offset=5) == ((5, bytes(size), 7, 0), None, None)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"\x12\x02ab", b"\x08\x05"], id="fields in another order"),
        pytest.param([b"\x08\x05", b"\x08\x06"], id="a field twice"),
        pytest.param([b"\x08\x85\x00"], id="a number longer than needed"),
        pytest.param([b"\x08\x05", b"\x12\x02ab", b"\x7a\x01x"], id="a field of a later version"),
        pytest.param([b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"], id="a number over 64 bits"),
        pytest.param([b"\x12\x7fab"], id="a length over the end"),
        pytest.param([b"\x1dabc"], id="a checksum cut short"),
        pytest.param([b"\x12\x02ab", b"\x2dabcd"], id="another field as long as the checksum in its place"),
    ],
)
def test_unusual_forms_mean_what_they_mean_to_generated_code(parts: list[bytes]) -> None:
    inner = b"".join(parts)
    chunk = b"\x12" + bytes([len(inner)]) + inner
    for message in (chunk, put_before(chunk, header=HEADER, end=TIMES)):
        for offset in (0, 5):
            assert read(message, offset=offset) == read_by_generated_code(message)


@settings(max_examples=900, deadline=None)
@given(
    chunk=CHUNKS,
    header=HEADERS,
    end=ENDS,
    place=st.integers(0, 400),
    change=st.binary(max_size=3),
    cut=st.integers(0, 3),
)
def test_whatever_happens_to_the_bytes_both_read_the_same(
    chunk: vision_pb2.FeaturesChunk,
    header: vision_pb2.FeaturesHeader | None,
    end: vision_pb2.FeaturesEnd | None,
    place: int,
    change: bytes,
    cut: int,
) -> None:
    message = pack(ours(chunk), header=header, end=end)
    broken = message[:place] + change + message[place + cut :]
    for offset in (0, chunk.offset):
        assert read(broken, offset=offset) == read_by_generated_code(broken)


@settings(max_examples=400, deadline=None)
@given(
    message=st.binary(max_size=60)
    | st.lists(
        st.tuples(st.sampled_from(b"\x0a\x12\x1a"), st.binary(max_size=12)).map(
            lambda field: bytes([field[0], len(field[1])]) + field[1]
        ),
        max_size=5,
    ).map(b"".join)
)
def test_random_bytes_are_read_as_by_generated_code(message: bytes) -> None:
    assert read(message) == read_by_generated_code(message)
