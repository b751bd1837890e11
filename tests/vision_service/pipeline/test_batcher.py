"""Batches are packed in order, leave when they should, and fail alone."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DiptychError, InternalError, ResourceExhaustedError, UnavailableError
from common.features.features import EncodeTimings
from tests.waiting import until
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import HostImage
from vision_service.pipeline.batcher import Batcher, EncodeResult


class FakeEncoder:
    """Turns an image of one row into its own first byte; remembers batches. Byte 255 fails, 254 loses the device."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, images: list[Pixels]) -> list[HostImage]:
        self.threads.add(threading.get_ident())
        assert self.gate.wait(5)
        names = [int(image[0, 0, 0]) for image in images]
        self.batches.append(names)
        if 255 in names:
            raise RuntimeError("secret path")
        if 254 in names:
            raise UnavailableError("DEVICE_LOST", "this replica lost its device")
        return [HostImage((bytes([name]),)) for name in names]


@asynccontextmanager
async def batcher_of(
    encoder: FakeEncoder, *, max_batch_patches: int = 10, max_pending_patches: int = 1000, max_wait: float = 0.0
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        encoder.encode,
        max_batch_patches=max_batch_patches,
        max_pending_patches=max_pending_patches,
        max_wait=max_wait,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        encoder.gate.set()
        await batcher.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]


async def encode(batcher: Batcher, name: int, num_patches: int = 1) -> EncodeResult:
    with batcher.pending.admit(num_patches):
        return await batcher.encode(np.full((1, 1, 3), name, np.uint8), num_patches=num_patches)


def start(batcher: Batcher, *images: tuple[int, int]) -> list[asyncio.Task[EncodeResult]]:
    return [asyncio.create_task(encode(batcher, *image)) for image in images]


async def hold_up(batcher: Batcher, encoder: FakeEncoder) -> asyncio.Task[EncodeResult]:
    """Keep the encoder busy with image 0, so that those that follow gather."""
    encoder.gate.clear()
    task = asyncio.create_task(encode(batcher, 0))
    while not encoder.threads:
        await asyncio.sleep(0.001)
    return task


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 14), min_size=1, max_size=30))
def test_batches_are_the_longest_heads_of_the_queue_that_fit(sizes: list[int]) -> None:
    async def scenario() -> None:
        encoder = FakeEncoder()
        async with batcher_of(encoder) as batcher:
            first = await hold_up(batcher, encoder)
            tasks = start(batcher, *enumerate(sizes, start=1))
            await asyncio.sleep(0)
            encoder.gate.set()
            results = await asyncio.gather(first, *tasks)
        assert batcher.num_encoded_images == len(sizes) + 1
        assert batcher.num_batches == len(encoder.batches)
        assert [result.features.messages()[0] for result in results] == [bytes([i]) for i in range(len(sizes) + 1)]
        batches = encoder.batches[1:]
        assert [name for batch in batches for name in batch] == list(range(1, len(sizes) + 1))
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            total = sum(sizes[name - 1] for name in batch)
            assert total <= 10 or len(batch) == 1
            assert not following or total + sizes[following[0] - 1] > 10

    asyncio.run(scenario())


async def test_everything_is_encoded_in_one_thread_that_is_not_the_loop_s() -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder) as batcher:
        for name in range(5):
            await encode(batcher, name)
    assert len(encoder.threads) == 1
    assert threading.get_ident() not in encoder.threads


async def test_an_image_waits_for_company_but_not_long() -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder, max_wait=0.05) as batcher:
        begin = time.monotonic()
        early = start(batcher, (1, 1))
        await asyncio.sleep(0.01)
        late = start(batcher, (2, 1))
        await asyncio.gather(*early, *late)
        assert 0.045 < time.monotonic() - begin < 10
    assert encoder.batches == [[1, 2]]


async def test_those_who_come_later_do_not_make_the_first_one_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now, encoder = [0.0], FakeEncoder()
    monkeypatch.setattr("vision_service.pipeline.batcher.time", SimpleNamespace(monotonic=lambda: now[0]))
    async with batcher_of(encoder, max_wait=60.0) as batcher:
        early = start(batcher, (1, 1))
        await asyncio.sleep(0.01)
        assert encoder.batches == []
        now[0] = 60.0
        late = start(batcher, (2, 1))
        await asyncio.wait_for(asyncio.gather(*early, *late), 5)
    assert encoder.batches == [[1, 2]]


@pytest.mark.parametrize("sizes", [[10], [6, 4], [6, 5], [11]])
async def test_a_full_batch_is_never_held_back(sizes: list[int]) -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder, max_wait=60.0) as batcher:
        tasks = start(batcher, *enumerate(sizes))
        async with asyncio.timeout(30):
            await tasks[0]
        for task in tasks:
            task.cancel()


async def test_images_of_callers_who_left_never_reach_the_encoder() -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder) as batcher:
        first = await hold_up(batcher, encoder)
        tasks = start(batcher, (1, 5), (2, 5), (3, 5))
        await asyncio.sleep(0)
        assert (batcher.pending.num_patches, batcher.pending.num_images) == (16, 4)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        assert (batcher.pending.num_patches, batcher.pending.num_images) == (11, 3)
        encoder.gate.set()
        await asyncio.gather(first, tasks[0], tasks[2])
        assert (batcher.pending.num_patches, batcher.pending.num_images) == (0, 0)
    assert encoder.batches == [[0], [1, 3]]


class HeldEncoder(FakeEncoder):
    """Goes on with a batch of several images when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def encode(self, images: list[Pixels]) -> list[HostImage]:
        if len(images) > 1:
            self.has_begun.set()
            assert self.may_go_on.wait(5)
        return super().encode(images)


async def test_who_leaves_while_its_batch_is_encoded_takes_nothing_from_the_others() -> None:
    encoder = HeldEncoder()
    async with batcher_of(encoder) as batcher:
        first = await hold_up(batcher, encoder)
        tasks = start(batcher, (1, 5), (2, 5))
        await asyncio.sleep(0)
        encoder.gate.set()
        await first
        await until(encoder.has_begun.is_set)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        encoder.may_go_on.set()
        assert (await tasks[1]).features.messages() == (b"\x02",)
    assert encoder.batches == [[0], [1, 2]]


async def test_an_encoder_that_gives_too_few_images_gives_nobody_those_of_another() -> None:
    class Forgetful(FakeEncoder):
        def encode(self, images: list[Pixels]) -> list[HostImage]:
            return super().encode(images)[: 1 if len(images) > 1 else None]

    encoder = Forgetful()
    async with batcher_of(encoder) as batcher:
        first = await hold_up(batcher, encoder)
        tasks = start(batcher, (1, 5), (2, 5))
        await asyncio.sleep(0)
        encoder.gate.set()
        await first
        results = await asyncio.gather(*tasks)
    assert [result.features.messages() for result in results] == [(b"\x01",), (b"\x02",)]
    assert encoder.batches == [[0], [1, 2], [1], [2]]


async def test_the_times_of_a_batch_are_told_and_say_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, heard = [100.0], list[tuple[int, int, float]]()

    class Slow(FakeEncoder):
        def encode(self, images: list[Pixels]) -> list[HostImage]:
            now[0] += 3.0
            return super().encode(images)

    monkeypatch.setattr("vision_service.pipeline.batcher.time", SimpleNamespace(monotonic=lambda: now[0]))
    batcher = Batcher(
        Slow().encode,
        max_batch_patches=10,
        max_pending_patches=20,
        max_wait=0.0,
        on_batch=lambda *batch: heard.append(batch),
    )
    batcher.start()
    results = await asyncio.gather(*start(batcher, (1, 6), (2, 6)))
    assert [result.timings for result in results] == [
        EncodeTimings(queue=0.0, preprocess=0.0, encode=3.0),
        EncodeTimings(queue=3.0, preprocess=0.0, encode=3.0),
    ]
    assert heard == [(1, 6, 3.0)] * 2
    with batcher.pending.admit(12):
        for num_patches in (9, 100):
            with pytest.raises(ResourceExhaustedError) as caught, batcher.pending.admit(num_patches):
                pass
            assert caught.value.retry_after == 12 * 3.0 / 6
    await batcher.close()


async def test_only_the_image_at_fault_fails() -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder) as batcher:
        first = await hold_up(batcher, encoder)
        tasks = start(batcher, (1, 1), (255, 1), (3, 1))
        await asyncio.sleep(0)
        encoder.gate.set()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], EncodeResult)
        assert isinstance(results[2], EncodeResult)
        assert isinstance(results[1], InternalError)
        assert results[1].reason == "ENCODE_FAILED"
        assert "secret" not in results[1].message
        assert (await encode(batcher, 4)).features.messages()[0] == b"\x04"
        assert not batcher.device_lost.is_set()
    assert encoder.batches == [[0], [1, 255, 3], [1], [255], [3], [4]]


class SmallEncoder(FakeEncoder):
    """Has room for so many images at once; more with each time that room was made."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.num_made = 0

    def encode(self, images: list[Pixels]) -> list[HostImage]:
        encoded = super().encode(images)
        if len(images) > self.room:
            raise ResourceExhaustedError("ENCODER_OUT_OF_MEMORY", "no room", retry_after=1.0)
        return encoded

    def make_room(self) -> None:
        self.num_made += 1


@pytest.mark.parametrize("room", [0, 1, 2])
async def test_where_memory_is_short_room_is_made_and_less_is_tried_once(room: int) -> None:
    encoder = SmallEncoder(room)
    batcher = Batcher(
        encoder.encode, max_batch_patches=10, max_pending_patches=100, max_wait=0.0, make_room=encoder.make_room
    )
    batcher.start()
    tasks = start(batcher, (1, 1), (2, 1))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    encoder.room = 1
    alone = await encode(batcher, 3)
    await batcher.close()
    assert alone.features.messages() == (b"\x03",)
    if room == 0:
        assert [getattr(result, "reason", None) for result in results] == ["ENCODER_OUT_OF_MEMORY"] * 2
    else:
        assert all(isinstance(result, EncodeResult) for result in results)
    assert encoder.batches[:-1] == ([[1, 2]] if room == 2 else [[1, 2], [1], [2]])
    assert encoder.num_made == {0: 3, 1: 1, 2: 0}[room]


async def test_where_making_room_fails_its_callers_hear_of_it_and_the_next_batch_is_encoded() -> None:
    encoder = SmallEncoder(room=0)

    def make_room() -> None:
        encoder.room = 1
        raise RuntimeError("a bug")

    batcher = Batcher(encoder.encode, max_batch_patches=10, max_pending_patches=100, max_wait=0.0, make_room=make_room)
    batcher.start()
    with pytest.raises(InternalError, match="could not be encoded"):
        await asyncio.wait_for(encode(batcher, 1), 5)
    assert (await asyncio.wait_for(encode(batcher, 2), 5)).features.messages() == (b"\x02",)
    await batcher.close()


@pytest.mark.parametrize("makes_room", [False, True])
async def test_an_image_that_memory_is_short_for_is_tried_twice_and_not_for_ever(makes_room: bool) -> None:
    encoder = SmallEncoder(room=0)
    make_room = encoder.make_room if makes_room else None
    batcher = Batcher(encoder.encode, max_batch_patches=10, max_pending_patches=100, max_wait=0.0, make_room=make_room)
    batcher.start()
    with pytest.raises(ResourceExhaustedError):
        await asyncio.wait_for(encode(batcher, 7), 5)
    with pytest.raises(InternalError):
        await asyncio.wait_for(encode(batcher, 255), 5)
    await batcher.close()
    assert encoder.batches == [[7], [7], [255]]
    assert encoder.num_made == 2 * makes_room, "not for another failure"


async def test_who_leaves_a_batch_that_fails_is_not_tried_again() -> None:
    encoder = HeldEncoder()
    async with batcher_of(encoder) as batcher:
        first = await hold_up(batcher, encoder)
        tasks = start(batcher, (1, 1), (255, 1), (3, 1))
        await asyncio.sleep(0)
        encoder.gate.set()
        await first
        await until(encoder.has_begun.is_set)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        encoder.may_go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[2], EncodeResult)
    assert encoder.batches == [[0], [1, 255, 3], [255], [3]]


async def test_an_image_alone_is_tried_again_once_where_room_was_made() -> None:
    encoder = SmallEncoder(room=0)

    def make_room() -> None:
        encoder.room = 1

    batcher = Batcher(encoder.encode, max_batch_patches=10, max_pending_patches=100, max_wait=0.0, make_room=make_room)
    batcher.start()
    assert (await encode(batcher, 7)).features.messages() == (b"\x07",)
    await batcher.close()
    assert encoder.batches == [[7], [7]]


async def test_a_lost_device_fails_the_batch_and_is_told() -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder) as batcher:
        first = await hold_up(batcher, encoder)
        tasks = start(batcher, (1, 1), (254, 1))
        await asyncio.sleep(0)
        encoder.gate.set()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, UnavailableError) for result in results)
        assert batcher.device_lost.is_set()
    assert encoder.batches == [[0], [1, 254]]


async def test_admission_is_bounded_in_patches() -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder, max_pending_patches=20) as batcher:
        with batcher.pending.admit(50):  # An idle encoder takes any image.
            with pytest.raises(ResourceExhaustedError) as caught, batcher.pending.admit(1):
                pass
            assert caught.value.reason == "ENCODER_QUEUE_FULL"
            assert caught.value.retry_after is not None
            assert batcher.pending.free_patches == 0
        with (
            batcher.pending.admit(15),
            batcher.pending.admit(5),
            pytest.raises(ResourceExhaustedError),
            batcher.pending.admit(1),
        ):
            pass
        assert batcher.pending.free_patches == 20


async def test_closing_refuses_those_who_wait() -> None:
    encoder = FakeEncoder()
    async with batcher_of(encoder) as batcher:
        first = await hold_up(batcher, encoder)
        tasks = start(batcher, (1, 10), (2, 10))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        encoder.gate.set()
        await closing
        errors = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert all(isinstance(error, UnavailableError) for error in errors)
        with pytest.raises(DiptychError):
            await encode(batcher, 3)


async def test_one_that_has_not_begun_can_be_closed_and_takes_nothing() -> None:
    batcher = Batcher(FakeEncoder().encode, max_batch_patches=10, max_pending_patches=100, max_wait=0.0)
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            await encode(batcher, 1)
        assert caught.value.reason == "DRAINING"
        await batcher.close()


async def test_what_fails_behind_the_encoder_costs_no_picture(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def on_batch(num_images: int, num_patches: int, seconds: float) -> None:
        told.append(num_images)
        if len(told) == 1:
            raise RuntimeError("a bug")

    batcher = Batcher(
        FakeEncoder().encode, max_batch_patches=10, max_pending_patches=100, max_wait=0.0, on_batch=on_batch
    )
    batcher.start()
    try:
        for name in (1, 2):
            assert (await asyncio.wait_for(encode(batcher, name), 5)).features
    finally:
        await batcher.close()
    assert "a bug" in caplog.text


async def test_a_batcher_that_stops_by_itself_lets_nobody_wait_and_has_the_process_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fault(batcher: Batcher) -> None:
        raise RuntimeError("planted")

    async with batcher_of(FakeEncoder()) as batcher:
        await encode(batcher, 1)
        monkeypatch.setattr(Batcher, "_pack", fault)
        async with asyncio.timeout(5):
            with pytest.raises(InternalError):
                await encode(batcher, 2)
            await batcher.device_lost.wait()
            with pytest.raises(UnavailableError):
                await encode(batcher, 3)
