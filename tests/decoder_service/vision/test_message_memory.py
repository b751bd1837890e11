"""A message of features is let go as soon as its rows are in their place, and the buffer when nobody writes to it.

The buffer's pages are there before anybody does.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from common.features.chunk_copy import Copied, CopyChunk, copy_plainly
from common.features.feature_memory import reserve
from decoder_service.vision.client import VisionClient
from decoder_service.vision.resolver import VisionResolver
from tests.decoder_service.vision.replica_fakes import (
    EXPECTED,
    Behaviour,
    FakeReplica,
    encode,
    forever,
    rows_of,
    spec_of,
    well,
)
from tests.page_faults import faults_of_writing, num_faults
from tests.waiting import until


@asynccontextmanager
async def client_with(copy: CopyChunk, behaviour: Behaviour = forever) -> AsyncIterator[VisionClient]:
    """A client that gets two messages of a picture and then no more, or what the replica else sends."""
    replica = FakeReplica(behaviour)
    await replica.start()
    client = VisionClient(VisionResolver([replica.address]), expected=EXPECTED, shared_memory=False, copy=copy)
    await client.start()
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.close()
        await replica.stop()


async def test_no_message_is_held_while_the_next_one_is_waited_for() -> None:
    messages: list[object] = []

    def copy(place: memoryview, data: memoryview, dtype: str) -> Copied:
        messages.append(data.obj)
        return copy_plainly(place, data, dtype)

    async with client_with(copy) as client:
        waiting = asyncio.create_task(encode(client))
        await until(lambda: len(messages) == 2)
        await asyncio.sleep(0.05)  # The client now waits for the third.
        # What the messages alone have: their place in the list, and the argument of the function that counts.
        assert [sys.getrefcount(messages[index]) for index in range(2)] == [2, 2]
        waiting.cancel()
        await asyncio.wait({waiting})


class Noted:
    """A chunk of which it is known whether it was waited for."""

    def __init__(self, place: memoryview, data: memoryview, dtype: str) -> None:
        self._copied = copy_plainly(place, data, dtype)
        self.is_over = False

    def wait(self) -> Copied:
        self.is_over = True
        return self._copied


async def test_a_caller_that_leaves_waits_for_the_chunk_that_is_under_way() -> None:
    begun: list[Noted] = []

    def copy(place: memoryview, data: memoryview, dtype: str) -> Noted:
        begun.append(Noted(place, data, dtype))
        return begun[-1]

    async with client_with(copy) as client:
        waiting = asyncio.create_task(encode(client))
        await until(lambda: len(begun) == 2)
        assert [each.is_over for each in begun] == [True, False]
        waiting.cancel()
        await asyncio.wait({waiting})
        assert all(each.is_over for each in begun)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
async def test_no_page_is_missing_where_chunks_go() -> None:
    faults = 0

    def copy(place: memoryview, data: memoryview, dtype: str) -> Copied:
        nonlocal faults
        before = num_faults()
        place[:] = data
        faults += num_faults() - before
        return copy_plainly(place, data, dtype)

    spec = spec_of()
    buffer = reserve(spec.num_bytes)
    async with client_with(copy, well) as client:
        await client.encode(b"h", salt=b"s", spec=spec, buffer=buffer, request_id="r")
    assert buffer == rows_of()
    assert faults < 0.1 * faults_of_writing(reserve(spec.num_bytes))
