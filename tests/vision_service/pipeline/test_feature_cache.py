"""Features are encoded once for all who ask, kept within their bytes, and every byte is counted once."""

import asyncio
import contextlib
import random

import pytest

from common.errors import InternalError, ResourceExhaustedError
from common.features.feature_spec import FeatureSpec
from common.features.features import EncodeTimings
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from vision_service.model.encoded_image import HostImage
from vision_service.pipeline.batcher import EncodeResult
from vision_service.pipeline.byte_budget import ByteBudget
from vision_service.pipeline.feature_cache import FeatureCache, Lease

ROW = 4
"""Bytes of a patch's features: one float32."""


def spec_of(name: str, num_patches: int = 1) -> FeatureSpec:
    return FeatureSpec(image_hash=ImageHash(name.encode()), grid=PatchGrid(1, num_patches), width=1, dtype="float32")


class Encoder:
    """Ends, fails or hangs when the test says so."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.running: dict[str, asyncio.Future[None]] = {}

    async def encode(self, name: str) -> EncodeResult:
        self.started.append(name)
        self.running[name] = asyncio.get_running_loop().create_future()
        try:
            await self.running[name]
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            del self.running[name]
        rows = HostImage((name.encode(),))
        return EncodeResult(features=rows, timings=EncodeTimings(queue=0, preprocess=0, encode=0))


class Cache:
    """A cache with a fake encoder."""

    def __init__(self, *, limit: int = 1000, max_kept_bytes: int = 3 * ROW) -> None:
        self.budget = ByteBudget(limit)
        self.cache = FeatureCache(self.budget, max_kept_bytes=max_kept_bytes)
        self.encoder = Encoder()

    def lease(self, name: str, num_patches: int = 1) -> contextlib.AbstractContextManager[Lease]:
        return self.cache.lease(spec_of(name, num_patches), lambda: self.encoder.encode(name))

    async def ask(self, name: str, num_patches: int = 1) -> bytes:
        with self.lease(name, num_patches) as lease:
            return (await lease.arrived()).features.messages()[0]

    def start(self, *names: str) -> list[asyncio.Task[bytes]]:
        return [asyncio.create_task(self.ask(name)) for name in names]

    async def fill(self, *names: str) -> None:
        for name in names:
            task = asyncio.create_task(self.ask(name))
            await settle()
            if name in self.encoder.running:
                self.encoder.running[name].set_result(None)
            await task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_equal_images_at_once_are_encoded_once() -> None:
    cache = Cache()
    tasks = cache.start("a", "a", "a", "b")
    await settle()
    assert cache.encoder.started == ["a", "b"]
    assert cache.budget.held == 2 * ROW
    for running in list(cache.encoder.running.values()):
        running.set_result(None)
    assert await asyncio.gather(*tasks) == [b"a", b"a", b"a", b"b"]
    assert (cache.budget.held, cache.cache.kept_bytes) == (0, 2 * ROW)
    counts = cache.cache.counts
    assert (counts.misses, counts.joined, counts.hits) == (2, 2, 0)


async def test_kept_features_are_not_encoded_again_and_the_oldest_goes_first() -> None:
    cache = Cache()
    await cache.fill("a", "b", "c", "a", "d")
    assert cache.encoder.started == ["a", "b", "c", "d"]
    await cache.fill("a", "c", "d", "b")
    assert cache.encoder.started == ["a", "b", "c", "d", "b"]
    assert cache.cache.counts.evictions == 2
    assert cache.cache.kept_bytes == 3 * ROW


async def test_what_is_kept_can_be_dropped_and_what_is_used_stays() -> None:
    cache = Cache()
    await cache.fill("a", "b")
    with cache.lease("a") as lease:
        cache.cache.drop_kept()
        assert (cache.cache.num_kept, cache.cache.kept_bytes, cache.cache.counts.evictions) == (0, 0, 1)
        assert (await lease.arrived()).features.messages() == (b"a",)
    await cache.fill("a", "b")
    assert cache.encoder.started == ["a", "b", "b"]


async def test_each_image_counts_once_as_there_on_its_way_or_missing() -> None:
    cache = Cache()
    counts = cache.cache.counts
    seen = []
    await cache.fill("a")
    seen.append((counts.misses, counts.joined, counts.hits))
    with cache.lease("a"):
        seen.append((counts.misses, counts.joined, counts.hits))
        assert await cache.ask("a") == b"a"
        seen.append((counts.misses, counts.joined, counts.hits))
    assert seen == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]


async def test_without_a_budget_nothing_is_kept() -> None:
    cache = Cache(max_kept_bytes=0)
    await cache.fill("a", "a")
    assert cache.encoder.started == ["a", "a"]
    assert cache.cache.num_kept == 0


async def test_what_is_larger_than_the_cache_pushes_nothing_out() -> None:
    cache = Cache()
    await cache.fill("a")
    task = asyncio.create_task(cache.ask("large", 4))
    await settle()
    cache.encoder.running["large"].set_result(None)
    await task
    assert (cache.cache.num_kept, cache.cache.counts.evictions) == (1, 0)


async def test_only_the_last_caller_who_leaves_stops_the_encoding() -> None:
    cache = Cache()
    first, second = cache.start("a", "a")
    await settle()
    first.cancel()
    await settle()
    assert cache.encoder.cancelled == []
    second.cancel()
    await settle()
    assert cache.encoder.cancelled == ["a"]
    assert (cache.budget.held, cache.cache.num_kept) == (0, 0)


async def test_the_memory_of_a_cancelled_encoding_is_in_use_until_it_has_ended() -> None:
    cache = Cache()
    with cache.lease("a"):
        await settle()
    assert cache.budget.held == ROW
    await settle()
    assert (cache.budget.held, cache.cache.num_kept) == (0, 0)


async def test_what_just_fits_into_the_cache_is_kept() -> None:
    cache = Cache()
    task = asyncio.create_task(cache.ask("large", 3))
    await settle()
    cache.encoder.running["large"].set_result(None)
    await task
    assert cache.cache.kept_bytes == 3 * ROW


async def test_who_asks_while_a_cancelled_encoding_ends_gets_a_new_one() -> None:
    cache = Cache()
    (first,) = cache.start("a")
    await settle()
    first.cancel()
    second = asyncio.create_task(cache.ask("a"))
    await settle()
    assert cache.encoder.started == ["a", "a"]
    cache.encoder.running["a"].set_result(None)
    assert await second == b"a"
    assert cache.budget.held == 0


async def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    cache = Cache()
    tasks = cache.start("a", "a")
    await settle()
    cache.encoder.running["a"].set_exception(InternalError("ENCODE_FAILED", "the image could not be encoded"))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, InternalError) for error in errors)
    assert (cache.budget.held, cache.cache.num_kept) == (0, 0)
    await cache.fill("a")
    assert cache.encoder.started == ["a", "a"]


async def test_a_full_budget_refuses_also_what_is_kept() -> None:
    cache = Cache(limit=2 * ROW)
    await cache.fill("a")
    tasks = cache.start("b", "c")
    await settle()
    for name in ("a", "d"):
        with pytest.raises(ResourceExhaustedError) as caught:
            await cache.ask(name)
        assert (caught.value.reason, caught.value.metadata["limit"]) == ("ENCODER_MEMORY_FULL", str(2 * ROW))
        assert caught.value.retry_after is not None
    for task in tasks:
        task.cancel()
    await settle()
    assert await cache.ask("a") == b"a"
    assert (cache.budget.held, cache.cache.kept_bytes) == (0, ROW)


@pytest.mark.parametrize("seed", range(20))
async def test_every_byte_is_counted_exactly_once_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    cache = Cache(limit=40 * ROW, max_kept_bytes=6 * ROW)
    tasks: set[asyncio.Task[bytes]] = set()
    for _ in range(400):
        match rng.randrange(4):
            case 0 | 1:
                number = rng.randrange(12)
                tasks.add(asyncio.create_task(cache.ask(f"{number:02}", 1 + number % 3)))
            case 2 if cache.encoder.running:
                running = rng.choice(list(cache.encoder.running.values()))
                if not running.done():
                    running.set_exception(InternalError("X", "x")) if rng.random() < 0.2 else running.set_result(None)
            case 3 if tasks:
                rng.choice(list(tasks)).cancel()
        if rng.random() < 0.7:
            await asyncio.sleep(0)
        kept = cache.cache._kept.values()
        assert cache.cache.kept_bytes == sum(lease.num_bytes for lease in kept) <= 6 * ROW
        assert not any(lease.ref_count or lease.is_counted for lease in kept)
        assert all(lease.is_counted for lease in cache.cache._in_use.values())
        assert not cache.cache._in_use.keys() & cache.cache._kept.keys()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await settle()
    assert (cache.budget.held, cache.cache._in_use, cache.encoder.running) == (0, {}, {})


async def test_who_asks_in_the_moment_of_a_failure_does_not_get_it() -> None:
    """Between the end of an encoding and the cache's hearing of it there is a turn of the loop."""
    cache = Cache()
    failing = asyncio.create_task(cache.ask("p"))
    await asyncio.sleep(0.01)
    cache.encoder.running["p"].set_exception(InternalError("ENCODE_FAILED", "x"))
    asking = asyncio.create_task(cache.ask("p"))
    await asyncio.sleep(0.01)
    assert cache.encoder.started == ["p", "p"]
    cache.encoder.running["p"].set_result(None)
    assert await asking == b"p"
    with pytest.raises(InternalError):
        await failing
    assert cache.budget.held == 0
