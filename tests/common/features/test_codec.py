"""The bytes written are those of generated code, and what is read is what generated code reads."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from common.features.codec import Chunk, pack_chunk, unpack
from diptych.v1 import vision_pb2

Message = vision_pb2.EncodeResponse
NUMBERS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 127, 128, 2**20, 2**32, 2**63])
CHUNKS = st.builds(
    lambda offset, data, crc32: vision_pb2.FeaturesChunk(offset=offset, data=data, crc32=crc32),
    NUMBERS,
    st.binary(max_size=300),
    st.integers(0, 2**32 - 1) | st.just(0),
)


def read(message: bytes, *, offset: int = 0) -> tuple[int, bytes, int] | Message | None:
    """What our code reads that expects a chunk at a place; None where it refuses."""
    try:
        part = unpack(message, offset=offset)
    except DecodeError:
        return None
    return (part.offset, bytes(part.data), part.crc32) if isinstance(part, Chunk) else part


def read_by_generated_code(message: bytes) -> tuple[int, bytes, int] | Message | None:
    try:
        response = Message.FromString(message)
    except DecodeError:
        return None
    chunk = response.chunk
    return (chunk.offset, chunk.data, chunk.crc32) if response.WhichOneof("part") == "chunk" else response


@settings(max_examples=300, deadline=None)
@given(chunk=CHUNKS)
def test_chunks_are_written_and_read_as_generated_code_does(chunk: vision_pb2.FeaturesChunk) -> None:
    message = Message(chunk=chunk).SerializeToString()
    assert pack_chunk(Chunk(chunk.offset, memoryview(chunk.data), chunk.crc32)) == message
    assert read(message, offset=chunk.offset) == (chunk.offset, chunk.data, chunk.crc32)
    assert read(message, offset=5) == (chunk.offset, chunk.data, chunk.crc32), "another was expected"


@pytest.mark.parametrize("offset", [0, 2**20, 41 * 2**20])
@pytest.mark.parametrize("size", [2, 100, 128, 2**14 + 2, 2**20, 2**20 - 2])
def test_a_chunk_in_its_place_is_read_without_a_copy(offset: int, size: int) -> None:
    data = (bytes(range(256)) * 4096)[:size]
    message = pack_chunk(Chunk(offset, memoryview(data), 7))
    chunk = unpack(message, offset=offset)
    assert isinstance(chunk, Chunk)
    assert chunk.data.obj is message
    assert chunk.data == data


def test_other_messages_are_left_to_generated_code() -> None:
    for part in (Message(), Message(header=vision_pb2.FeaturesHeader(rows=3)), Message(end=vision_pb2.FeaturesEnd())):
        assert read(part.SerializeToString()) == part


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
    message = b"\x12" + bytes([len(inner)]) + inner
    for offset in (0, 5):
        assert read(message, offset=offset) == read_by_generated_code(message)


@settings(max_examples=600, deadline=None)
@given(chunk=CHUNKS, place=st.integers(0, 400), change=st.binary(max_size=3), cut=st.integers(0, 3))
def test_whatever_happens_to_the_bytes_both_read_the_same(
    chunk: vision_pb2.FeaturesChunk, place: int, change: bytes, cut: int
) -> None:
    message = Message(chunk=chunk).SerializeToString()
    broken = message[:place] + change + message[place + cut :]
    for offset in (0, chunk.offset):
        assert read(broken, offset=offset) == read_by_generated_code(broken)


@settings(max_examples=400, deadline=None)
@given(message=st.binary(max_size=60) | st.binary(max_size=20).map(lambda rest: b"\x12" + bytes([len(rest)]) + rest))
def test_random_bytes_are_read_as_by_generated_code(message: bytes) -> None:
    assert read(message) == read_by_generated_code(message)
