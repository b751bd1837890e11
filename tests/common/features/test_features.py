"""Features arrive exactly as they were sent, or the stream is refused and nothing else is touched."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InternalError
from common.features.chunk_copy import Copied, CopyChunk, copy_plainly
from common.features.feature_spec import FeatureSpec
from common.features.features import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, EncodeTimings, FeatureReceiver
from common.features.packing import (
    CHUNK_SIZE,
    feature_header,
    feature_messages,
    pack_rows,
    shared_feature_messages,
    with_header,
)
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from common.native.chunks import open_copy
from diptych.v1 import types_pb2, vision_pb2

SPEC = FeatureSpec(image_hash=ImageHash(b"h" * 32), grid=PatchGrid(40, 45), width=1024, dtype="float32")
"""Three chunks and a half."""
ROWS = np.random.default_rng(0).normal(size=(1800, 1024)).astype("<f4").tobytes()
TIMINGS = EncodeTimings(queue=0.1, preprocess=0.2, encode=0.3)
GUARD = 64

Message = vision_pb2.EncodeResponse


@pytest.fixture(autouse=True, params=["inline", "shared", "inline by kernels", "shared by kernels"])
def memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether rows lie in the stream, or in shared memory with another's bytes on both sides, and who copies them."""
    SHARED.clear()
    if request.param.startswith("shared"):
        SHARED.append(bytearray())
    COPY[:] = [KERNELS if request.param.endswith("kernels") else copy_plainly]
    yield
    SHARED.clear()


SHARED: list[bytearray] = []
KERNELS = open_copy()
COPY: list[CopyChunk] = []
OFFSET = 4096


def packed(spec: FeatureSpec, rows: bytes) -> tuple[bytes, ...]:
    return pack_rows(memoryview(rows), header=feature_header(spec, weights_digest=b"d" * 32))


def sent_bytes(spec: FeatureSpec = SPEC, rows: bytes = ROWS) -> list[bytes]:
    messages = packed(spec, rows)
    if not SHARED:
        return list(feature_messages(messages, timings=TIMINGS))
    SHARED[0] = bytearray(b"x" * (len(rows) + 2 * OFFSET))
    return list(
        shared_feature_messages(
            spec,
            messages,
            region=vision_pb2.SharedRegion(offset=OFFSET, size=len(rows), lease=7),
            write=_write,
            weights_digest=b"d" * 32,
            timings=TIMINGS,
        )
    )


def sent(spec: FeatureSpec = SPEC, rows: bytes = ROWS) -> list[Message]:
    return [Message.FromString(message) for message in sent_bytes(spec, rows)]


def _write(offset: int, data: memoryview) -> None:
    SHARED[0][OFFSET + offset : OFFSET + offset + len(data)] = data


def view() -> memoryview | None:
    return memoryview(SHARED[0]) if SHARED else None


def chunk(offset: int, data: bytes) -> Message:
    if not SHARED:
        return Message(chunk=vision_pb2.FeaturesChunk(offset=offset, data=data, crc32=zlib.crc32(data)))
    if offset < len(SHARED[0]):
        _write(offset, memoryview(data))
    return Message(chunk=vision_pb2.FeaturesChunk(offset=offset, shared_size=len(data), crc32=zlib.crc32(data)))


def first(part: Message) -> Message:
    """The same message, but with the header."""
    part.header.CopyFrom(sent()[0].header)
    return part


def receive(messages: Sequence[Message | bytes], spec: FeatureSpec = SPEC) -> bytes:
    """What arrives in a buffer that lies between two guards, which must not be touched."""
    memory = bytearray(b"g" * (spec.num_bytes + 2 * GUARD))
    receiver = FeatureReceiver(spec, memoryview(memory)[GUARD:-GUARD], shared=view(), copy=COPY[0])
    try:
        for message in messages:
            receiver.receive(message if isinstance(message, bytes) else message.SerializeToString())
        receiver.finish()
    finally:
        assert memory[:GUARD] == memory[-GUARD:] == b"g" * GUARD
    return bytes(memory[GUARD:-GUARD])


def reason(messages: Sequence[Message | bytes], spec: FeatureSpec = SPEC) -> str:
    with pytest.raises(InternalError) as caught:
        receive(messages, spec)
    return caught.value.reason


def test_rows_arrive_as_they_were_sent() -> None:
    messages = sent()
    assert receive(sent_bytes()) == receive(messages) == ROWS
    assert messages[0].header.rows == 1800
    assert messages[-1].end.num_chunks == len(messages) == 4
    assert messages[-1].end.encode_seconds == 0.3
    assert {len(message.chunk.data) + message.chunk.shared_size for message in messages[:-1]} == {CHUNK_SIZE}


def test_the_header_is_in_the_first_message_the_end_in_the_last_and_a_chunk_in_all() -> None:
    small = FeatureSpec(image_hash=SPEC.image_hash, grid=PatchGrid(1, 2), width=4, dtype="float32")
    for spec, rows in ((SPEC, ROWS), (small, ROWS[: small.num_bytes])):
        messages = sent(spec, rows)
        places = range(len(messages))
        assert [message.HasField("header") for message in messages] == [place == 0 for place in places]
        assert [message.HasField("end") for message in messages] == [place == places[-1] for place in places]
        assert all(message.HasField("chunk") for message in messages)
        assert receive(messages, spec) == rows
    assert len(messages) == 1


def test_what_is_kept_is_sent_without_a_copy_where_no_times_are_told() -> None:
    messages = packed(SPEC, ROWS)
    nothing = EncodeTimings(queue=0, preprocess=0, encode=0)
    assert all(one is other for one, other in zip(feature_messages(messages, timings=nothing), messages, strict=True))
    timed = list(feature_messages(messages, timings=TIMINGS))
    assert [one is other for one, other in zip(timed, messages, strict=True)] == [True, True, True, False]


def test_a_header_that_comes_later_is_as_one_that_was_there() -> None:
    spec = SPEC
    for rows in (ROWS, ROWS[:4]):
        header = feature_header(spec, weights_digest=b"d" * 32)
        assert with_header(pack_rows(memoryview(rows)), header) == pack_rows(memoryview(rows), header=header)


@settings(max_examples=60, deadline=None)
@given(
    grid=st.builds(PatchGrid, st.integers(1, 40), st.integers(1, 40)),
    width=st.sampled_from([4, 100, 1024]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_rows_of_any_shape_and_type_arrive(grid: PatchGrid, width: int, dtype: str) -> None:
    spec = FeatureSpec(image_hash=ImageHash(b"h" * 32), grid=grid, width=width, dtype=dtype)
    rows = (bytes(range(64)) * (spec.num_bytes // 64 + 1))[: spec.num_bytes]
    assert receive(sent(spec, rows), spec) == rows


@pytest.mark.parametrize("split", [MIN_CHUNK_SIZE, 3 * MIN_CHUNK_SIZE, 1 << 20, MAX_CHUNK_SIZE])
def test_any_allowed_size_of_chunk_will_do(split: int) -> None:
    header = sent()[0].header
    chunks = [chunk(offset, ROWS[offset : offset + split]) for offset in range(0, len(ROWS), split)]
    chunks[0].header.CopyFrom(header)
    chunks[-1].end.num_chunks = len(chunks)
    assert receive(chunks) == ROWS


@settings(max_examples=200, deadline=None)
@given(order=st.lists(st.integers(0, 3), max_size=7))
def test_no_other_order_of_messages_is_accepted(order: list[int]) -> None:
    messages = sent()
    if order == list(range(4)):
        assert receive(messages) == ROWS
    else:
        assert reason([messages[index] for index in order]) == "EMBED_CORRUPT"


@pytest.mark.parametrize("left_out", range(4))
@pytest.mark.parametrize("change", ["missing", "twice", "empty"])
def test_a_message_that_is_missing_or_doubled_is_refused(left_out: int, change: str) -> None:
    messages = sent()
    replacement = {"missing": [], "twice": [messages[left_out]] * 2, "empty": [Message()]}[change]
    messages[left_out : left_out + 1] = replacement
    assert reason(messages) == "EMBED_CORRUPT"


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("name", ["nothing", "header", "end", "both"])
def test_a_message_without_a_chunk_is_refused_wherever_it_stands(name: str, place: int) -> None:
    messages = sent()
    header = messages[0].header if name in ("header", "both") else None
    end = messages[-1].end if name in ("end", "both") else None
    without = Message(header=header, end=end)
    assert reason([*messages[:place], without, *messages[place:]]) == "EMBED_CORRUPT"


def test_header_and_end_in_messages_of_their_own_are_refused() -> None:
    """As the stream was before they came with a chunk."""
    messages = sent()
    alone = [Message(header=messages[0].header), Message(end=messages[-1].end)]
    messages[0].ClearField("header")
    messages[-1].ClearField("end")
    assert reason([alone[0], *messages, alone[1]]) == "EMBED_CORRUPT"


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(("name", "home"), [("header", 0), ("end", 3)])
def test_header_and_end_have_one_place(name: Literal["header", "end"], home: int, place: int) -> None:
    messages = sent()
    messages[place].MergeFrom(Message(**{name: getattr(messages[home], name)}))
    if place == home:
        assert receive(messages) == ROWS
    else:
        assert reason(messages) == "EMBED_CORRUPT", "in two messages"
    messages[home].ClearField(name)
    assert reason(messages) == "EMBED_CORRUPT", "in another message, or in none"


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, CHUNK_SIZE - 1), bit=st.integers(0, 7), index=st.integers(0, 2))
def test_a_flipped_bit_is_found(place: int, bit: int, index: int) -> None:
    messages = sent()
    if SHARED:
        SHARED[0][OFFSET + index * CHUNK_SIZE + place] ^= 1 << bit
    else:
        data = bytearray(messages[index].chunk.data)
        data[place] ^= 1 << bit
        messages[index].chunk.data = bytes(data)
    assert reason(messages) == "EMBED_CORRUPT"


@pytest.mark.parametrize("size", [0, 1, 4, MIN_CHUNK_SIZE - 4, MAX_CHUNK_SIZE + 4], ids=lambda size: f"{size} bytes")
def test_chunks_that_are_too_small_or_too_large_are_refused(size: int) -> None:
    assert reason([first(chunk(0, ROWS[:size]))]) == "EMBED_CORRUPT"


@pytest.mark.parametrize("offset", [1, CHUNK_SIZE, 2**63, 2**64 - CHUNK_SIZE, 2**64 - 1])
def test_offsets_that_do_not_follow_are_refused(offset: int) -> None:
    assert reason([first(chunk(offset, ROWS[:CHUNK_SIZE]))]) == "EMBED_CORRUPT"


def test_an_end_that_counted_other_chunks_is_refused() -> None:
    messages = sent()
    messages[-1].end.num_chunks += 1
    assert reason(messages) == "EMBED_CORRUPT"


@pytest.mark.parametrize("place", range(4))
def test_an_end_before_all_rows_is_refused_though_it_counted_well(place: int) -> None:
    messages = sent()[: place + 1]
    messages[-1].end.num_chunks = place + 1
    if place == 3:
        assert receive(messages) == ROWS
    else:
        assert reason(messages) == "EMBED_CORRUPT"


def test_more_rows_than_asked_for_are_refused() -> None:
    messages = sent()
    more = chunk(len(ROWS), ROWS[:MIN_CHUNK_SIZE])
    assert reason([*messages, more]) == "EMBED_CORRUPT", "behind the end"
    more.end.CopyFrom(messages[-1].end)
    messages[-1].ClearField("end")
    for more.end.num_chunks in (4, 5):
        assert reason([*messages, more]) == "EMBED_CORRUPT", "before the end"


def test_a_chunk_that_splits_a_value_is_refused() -> None:
    assert reason([first(chunk(0, ROWS[: MIN_CHUNK_SIZE + 2]))]) == "EMBED_CORRUPT"


WRONG_HEADERS: dict[str, Callable[[vision_pb2.FeaturesHeader], None]] = {
    "another image": lambda header: setattr(header, "image_hash", b"x" * 32),
    "no image": lambda header: header.ClearField("image_hash"),
    "transposed grid": lambda header: header.grid.CopyFrom(types_pb2.PatchGrid(height=45, width=40)),
    "huge grid": lambda header: header.grid.CopyFrom(types_pb2.PatchGrid(height=2**32 - 1, width=2**32 - 1)),
    "rows": lambda header: setattr(header, "rows", 2**32 - 1),
    "width": lambda header: setattr(header, "width", 5120),
    "dtype": lambda header: setattr(header, "dtype", types_pb2.DTYPE_BFLOAT16),
    "unknown dtype": lambda header: setattr(header, "dtype", 99),
    "nothing": lambda header: header.Clear(),
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_a_header_of_other_features_is_refused_before_anything_is_written(name: str) -> None:
    messages = sent()
    WRONG_HEADERS[name](messages[0].header)
    memory = bytearray(SPEC.num_bytes)
    receiver = FeatureReceiver(SPEC, memoryview(memory), shared=view(), copy=COPY[0])
    with pytest.raises(InternalError) as caught:
        receiver.receive(messages[0].SerializeToString())
    assert caught.value.reason == "EMBED_INVALID"
    with pytest.raises(InternalError):
        receiver.receive(messages[1].SerializeToString())
    assert not any(memory)


@pytest.mark.parametrize("value", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x01\x00\x80\x7f"])
def test_values_that_are_not_finite_are_refused(value: bytes) -> None:
    rows = bytearray(ROWS)
    rows[CHUNK_SIZE + 400 : CHUNK_SIZE + 404] = value
    assert reason(sent(SPEC, bytes(rows))) == "EMBED_INVALID"


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", b"\xc0\x7f"), ("float16", b"\x00\x7c")])
def test_values_of_two_bytes_that_are_not_finite_are_refused(dtype: str, value: bytes) -> None:
    spec = FeatureSpec(image_hash=ImageHash(b"h" * 32), grid=PatchGrid(1, 1), width=4, dtype=dtype)
    assert reason(sent(spec, b"\xff\x3f" * 3 + value), spec) == "EMBED_INVALID"
    assert receive(sent(spec, b"\xff\x3f" * 4), spec) == b"\xff\x3f" * 4


def test_a_buffer_of_another_size_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="buffer of"):
        FeatureReceiver(SPEC, memoryview(bytearray(SPEC.num_bytes - 1)))
    with pytest.raises(ValueError, match="buffer of"):
        FeatureReceiver(SPEC, memoryview(bytes(SPEC.num_bytes)))


WRONG_REGIONS = {
    "behind the end": vision_pb2.SharedRegion(offset=2 * OFFSET + 4, size=len(ROWS)),
    "far behind the end": vision_pb2.SharedRegion(offset=2**64 - 1, size=len(ROWS)),
    "smaller": vision_pb2.SharedRegion(offset=0, size=len(ROWS) - 4),
    "larger": vision_pb2.SharedRegion(offset=0, size=len(ROWS) + 4),
    "huge": vision_pb2.SharedRegion(offset=0, size=2**64 - 1),
}


@pytest.mark.parametrize("name", WRONG_REGIONS)
def test_a_place_outside_the_shared_memory_is_refused(name: str) -> None:
    messages = sent()
    messages[0].header.shared.CopyFrom(WRONG_REGIONS[name])
    assert reason(messages) == "EMBED_INVALID"


def test_chunks_lie_where_the_header_says_and_nowhere_else() -> None:
    messages = sent()
    for data, shared_size in ((ROWS[:CHUNK_SIZE], 0), (b"", CHUNK_SIZE)):
        other = [Message.FromString(message.SerializeToString()) for message in messages]
        other[0].chunk.data, other[0].chunk.shared_size = data, shared_size
        if bool(SHARED) == bool(data):
            assert reason(other) == "EMBED_CORRUPT"
        else:
            assert receive(other) == ROWS
    messages[0].chunk.data, messages[0].chunk.shared_size = ROWS[:CHUNK_SIZE], CHUNK_SIZE
    assert reason(messages) == "EMBED_CORRUPT"


def test_what_changes_after_it_was_copied_changes_nothing() -> None:
    messages = sent()
    memory = bytearray(SPEC.num_bytes)
    receiver = FeatureReceiver(SPEC, memoryview(memory), shared=view(), copy=COPY[0])
    for message in messages:
        receiver.receive(message.SerializeToString())
        if SHARED:
            _write(message.chunk.offset, memoryview(bytes(message.chunk.shared_size)))
    receiver.finish()
    assert bytes(memory) == ROWS
    assert receiver.lease == (7 if SHARED else None)


class Later:
    """A chunk that is copied when it is waited for, as one that a thread has not begun."""

    def __init__(self, place: memoryview, data: memoryview, dtype: str) -> None:
        self._begun = place, data, dtype
        self._copied: Copied | None = None

    def wait(self) -> Copied:
        if self._copied is None:
            self._copied = copy_plainly(*self._begun)
        return self._copied


def test_what_comes_last_is_in_its_place_before_the_stream_is_over() -> None:
    messages, memory = sent(), bytearray(SPEC.num_bytes)
    receiver = FeatureReceiver(SPEC, memoryview(memory), shared=view(), copy=Later)
    for message in messages:
        assert not receiver.is_complete
        receiver.receive(message.SerializeToString())
    # The memory that the sender shares is given back as soon as this is so.
    assert receiver.is_complete == (bytes(memory) == ROWS) == bool(SHARED)
    receiver.finish()
    assert receiver.is_complete
    assert bytes(memory) == ROWS


@pytest.mark.parametrize("number", range(4))
def test_a_chunk_that_is_wrong_is_found_when_the_next_message_comes_or_at_the_end(number: int) -> None:
    messages = sent()
    messages[number].chunk.crc32 ^= 1
    receiver = FeatureReceiver(SPEC, memoryview(bytearray(SPEC.num_bytes)), shared=view(), copy=Later)

    def take(messages: Sequence[Message]) -> None:
        for message in messages:
            receiver.receive(message.SerializeToString())
        receiver.finish()

    for rest in (messages[: number + 2], messages[number + 2 :]):
        with pytest.raises(InternalError, match="checksum"):
            take(rest)
        assert not receiver.is_complete


def test_who_leaves_early_leaves_nobody_who_writes_to_the_buffer() -> None:
    messages, memory = sent(), bytearray(SPEC.num_bytes)
    receiver = FeatureReceiver(SPEC, memoryview(memory), shared=view(), copy=Later)
    receiver.receive(messages[0].SerializeToString())
    assert any(memory) == bool(SHARED)
    receiver.close()
    assert bytes(memory[:CHUNK_SIZE]) == ROWS[:CHUNK_SIZE]
