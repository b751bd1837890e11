"""Whoever writes features to their place finds memory there."""

import asyncio
import mmap
import sys
import threading

import pytest

from common.features import feature_memory
from common.features.feature_memory import PageMaker, give_back, lend, reserve
from tests.page_faults import faults_of_writing, num_faults

SIZE = 48 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def test_to_reserve_memory_touches_none_of_it() -> None:
    before = num_faults()
    places = [reserve(SIZE) for _ in range(32)]
    assert num_faults() - before < len(places) / 2


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 20, (1 << 20) + 1, SIZE + 5])
async def test_all_that_was_reserved_can_be_written_to_and_read(num_bytes: int) -> None:
    place = reserve(num_bytes)
    await PageMaker().make(place)
    place[:] = b"\x07" * num_bytes
    assert (len(place), bytes(place[-3:])) == (num_bytes, b"\x07" * min(num_bytes, 3))


async def test_no_page_is_missing_of_memory_that_was_made() -> None:
    made, reserved = reserve(SIZE), reserve(SIZE)
    await PageMaker().make(made)
    assert faults_of_writing(made) < 0.1 * faults_of_writing(reserved)


async def test_what_is_in_memory_stays_when_its_pages_are_made() -> None:
    place = memoryview(bytearray(SIZE))  # Anywhere, where no page begins.
    place[:6] = b"before"
    await PageMaker().make(place[3:])
    assert bytes(place[:6]) == b"before"


async def test_who_leaves_while_pages_are_made_holds_up_nobody() -> None:
    maker = PageMaker()
    tasks = [asyncio.create_task(maker.make(reserve(SIZE))) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks[1:])


async def test_what_was_lent_to_be_given_back_is_given_back_once_and_not_by_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []
    unmap = feature_memory._unmap

    def noting(memory: memoryview) -> None:
        unmap(memory)
        threads.append(threading.get_ident())

    monkeypatch.setattr(feature_memory, "_unmap", noting)
    memory = reserve(SIZE)
    mapping = memory.obj
    lent = lend(memory, then=give_back)
    part = lent[5:7]
    del lent
    await asyncio.sleep(0.05)
    assert not threads, "a part of it is in use"
    part[:] = b"ab"
    del part
    async with asyncio.timeout(5):
        while not threads:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    assert isinstance(mapping, mmap.mmap)
    assert mapping.closed
