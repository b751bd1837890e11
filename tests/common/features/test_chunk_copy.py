"""Both ways to copy a chunk find the same: the bytes, their checksum, and values that are not finite."""

import asyncio
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from common.features.chunk_copy import CopyChunk, copy_in_turns, copy_plainly
from common.features.feature_spec import VALUE_TYPES
from common.model.settings import ComputeChoice
from common.native import chunks
from common.native.build import best_library, default_cache
from common.native.chunks import ChunkCopier, open_copy

SIZES = (4, 8, 60, 64, 68, 124, 128, 132, 192, 256, 508, 512, 516, 576, 828, 1000, 1084, 65_536, 65_540)
SPECIAL = {
    "float32": (0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F800001),
    "bfloat16": (0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81),
    "float16": (0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x7C01),
}
"""Infinities and NaNs."""
LARGEST = {"float32": (0x7F7FFFFF, 0xFF7FFFFF), "bfloat16": (0x7F7F, 0xFF7F), "float16": (0x7BFF, 0xFBFF)}


@pytest.fixture(params=["plain", "kernels"])
def copy(request: pytest.FixtureRequest) -> CopyChunk:
    return copy_plainly if request.param == "plain" else ChunkCopier(best_library(default_cache())[0])


def values(dtype: str, num_bytes: int, seed: int = 0) -> bytearray:
    """Finite values of every sign and size."""
    kind = VALUE_TYPES[dtype]
    drawn = np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8).view(f"<u{kind.size}")
    drawn[drawn & kind.exponent == kind.exponent] ^= kind.exponent
    return bytearray(drawn.tobytes())


@pytest.mark.parametrize("dtype", VALUE_TYPES)
def test_bytes_arrive_with_their_checksum_wherever_they_begin_and_end(copy: CopyChunk, dtype: str) -> None:
    for size in SIZES:
        for shift in (0, 1, 4, 8, 16, 17, 48):
            data = values(dtype, size, seed=size + shift)
            source, target = memoryview(bytearray(shift) + data)[shift:], bytearray(b"x" * (size + 64))
            copied = copy(memoryview(target)[shift : shift + size], source, dtype).wait()
            assert (copied.crc32, copied.is_finite) == (zlib.crc32(data), True)
            assert target == b"x" * shift + data + b"x" * (64 - shift)


@pytest.mark.parametrize("dtype", VALUE_TYPES)
def test_one_value_that_is_not_finite_is_found_at_any_place(copy: CopyChunk, dtype: str) -> None:
    kind = VALUE_TYPES[dtype]
    for place in (*range(40), 100, 170, 200, 255, 256, 299):
        for found, patterns in ((False, SPECIAL), (True, LARGEST)):
            for pattern in patterns[dtype]:
                data = values(dtype, 300 * kind.size)
                data[place * kind.size : (place + 1) * kind.size] = pattern.to_bytes(kind.size, "little")
                copied = copy(memoryview(bytearray(len(data))), memoryview(data), dtype).wait()
                assert (copied.crc32, copied.is_finite) == (zlib.crc32(data), found)


def test_exponents_that_two_neighbours_have_together_are_nobodys(copy: CopyChunk) -> None:
    data = np.array([0x80FF, 0x007F] * 40, "<u2").tobytes()
    assert 0x7F80 in np.frombuffer(data[1:-1], "<u2")
    assert copy(memoryview(bytearray(len(data))), memoryview(data), "bfloat16").wait().is_finite


def test_memory_that_may_only_be_read_is_copied_from_and_never_to(copy: CopyChunk) -> None:
    data = bytes(values("bfloat16", 256))
    target = bytearray(256)
    copy(memoryview(target), memoryview(data), "bfloat16").wait()
    assert target == data
    with pytest.raises((TypeError, ValueError)):
        copy(memoryview(data), memoryview(target), "bfloat16")
    with pytest.raises(ValueError, match=r"do not go|structures"):
        copy(memoryview(target)[:128], memoryview(data), "bfloat16")


def test_chunks_that_are_under_way_together_each_tell_their_own(copy: CopyChunk) -> None:
    # From the last to the first, so that some are asked for that the thread has not begun.
    for order in (1, -1):
        chunks = [values("bfloat16", 200_000 + 2 * number, seed=number) for number in range(40)]
        chunks[7][:2] = (0x7FC0).to_bytes(2, "little")
        targets = [bytearray(len(chunk)) for chunk in chunks]
        moves = [
            copy(memoryview(target), memoryview(chunk), "bfloat16")
            for target, chunk in zip(targets, chunks, strict=True)
        ]
        found = [move.wait() for move in moves[::order]][::order]
        assert found == [(zlib.crc32(chunk), number != 7) for number, chunk in enumerate(chunks)]
        assert [move.wait() for move in moves] == found
        assert targets == chunks


def test_memory_goes_when_nothing_is_written_to_it_any_more(copy: CopyChunk) -> None:
    # Behind a larger one, so that the thread has not come to it.
    large, data = values("float32", 64 << 20), values("float32", 1 << 20)
    target = bytearray(1 << 20)
    before = copy(memoryview(bytearray(64 << 20)), memoryview(large), "float32")
    move = copy(memoryview(target), memoryview(data), "float32")
    del move
    assert target == data
    assert before.wait().crc32 == zlib.crc32(large)


def test_messages_are_kept_by_the_last_two_chunks_alone() -> None:
    copier = ChunkCopier(best_library(default_cache())[0])
    chunks = [values("float32", 4 << 20, seed=number) for number in range(5)]
    expected, targets = [bytearray(chunk) for chunk in chunks], [bytearray(4 << 20) for _ in chunks]
    moves = [
        copier(memoryview(target), memoryview(chunk), "float32") for target, chunk in zip(targets, chunks, strict=True)
    ]
    for chunk in chunks[:3]:
        chunk.clear()  # An error where anybody refers to what is in it.
    for chunk in chunks[3:]:
        with pytest.raises(BufferError):
            chunk.clear()
    assert [move.wait().crc32 for move in moves] == [zlib.crc32(chunk) for chunk in expected]
    assert targets == expected


def test_what_a_copier_has_begun_is_done_when_the_copier_goes() -> None:
    copier = ChunkCopier(best_library(default_cache())[0])
    data, target = values("float32", 4 << 20), bytearray(4 << 20)
    moves = [copier(memoryview(target), memoryview(data), "float32") for _ in range(4)]
    del copier
    assert [move.wait() for move in moves] == [(zlib.crc32(data), True)] * 4
    assert target == data


async def test_a_large_copy_leaves_turns_to_others() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    data, place = bytes(values("float32", 10 * 2**20 + 12)), bytearray(10 * 2**20 + 12)
    await copy_in_turns(memoryview(place), memoryview(data))
    counting.cancel()
    assert place == data
    assert turns >= 10


def test_where_the_system_gives_no_thread_chunks_are_copied_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(
        diptych_can_take=lambda: 1, diptych_mover_new=lambda: None, diptych_mover_delete=SimpleNamespace()
    )
    monkeypatch.setattr(chunks, "load", lambda _: library)
    assert open_copy() is copy_plainly


def test_without_kernels_chunks_are_copied_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    assert isinstance(open_copy(), ChunkCopier)
    assert open_copy(ComputeChoice.TORCH) is copy_plainly
    monkeypatch.setenv("DIPTYCH_NATIVE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert open_copy() is copy_plainly
