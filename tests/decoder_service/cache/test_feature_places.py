"""Memory for features is lent to one at a time, comes back by itself and once, and stays within the budget."""

import asyncio
import gc
import threading
import weakref
from random import Random

import numpy as np
import pytest

from common.errors import UnavailableError
from common.features import feature_memory
from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from decoder_service.cache.feature_places import FeaturePlaces
from decoder_service.cache.feature_store import FeatureStore, Lease, PromptImage
from tests.decoder_service.encoder_fakes import FakeEncoder, settle
from tests.decoder_service.vision.replica_fakes import (
    Behaviour,
    FakeReplica,
    client_of,
    corrupt,
    forever,
    rows_of,
    spec_of,
)

LARGE = 2 << 20
"""Bytes of a place that is the system's and not the allocator's."""


def address(place: memoryview) -> int:
    return int(np.frombuffer(place, np.uint8).ctypes.data)


async def test_a_place_that_nobody_refers_to_is_lent_again() -> None:
    places = FeaturePlaces(budget_bytes=2 * LARGE)
    first = places.take(LARGE)
    where = address(first)
    del first
    assert (places.bytes_lent, places.bytes_kept) == (0, LARGE)
    again = places.take(LARGE)
    assert (address(again), places.bytes_lent, places.bytes_kept) == (where, LARGE, 0)


async def test_no_more_is_kept_than_the_budget_though_more_was_lent() -> None:
    """Whoever counts may count one as gone while its last reader still has it."""
    places = FeaturePlaces(budget_bytes=3 * LARGE)
    lent = [places.take(2 * LARGE), places.take(2 * LARGE)]
    lent.clear()
    assert (places.bytes_lent, places.bytes_kept) == (0, 2 * LARGE)


@pytest.mark.parametrize("of", [memoryview, lambda place: place[5:9], lambda place: np.frombuffer(place, np.uint8)[7:]])
async def test_no_place_is_lent_twice_while_anybody_refers_to_a_part_of_it(of: type[memoryview]) -> None:
    places = FeaturePlaces(budget_bytes=4 * LARGE)
    place = places.take(LARGE)
    where, part = address(place), of(place)
    del place
    others = [places.take(LARGE) for _ in range(3)]
    assert where not in map(address, others)
    del part
    others += [places.take(LARGE), places.take(LARGE)]
    assert [address(other) for other in others].count(where) == 1


async def test_what_is_lent_and_what_is_kept_stay_within_the_budget_together() -> None:
    random, places, budget = Random(0), FeaturePlaces(budget_bytes=10 * LARGE), 10 * LARGE
    lent: list[memoryview] = []
    for _ in range(2000):
        size = random.choice([100, LARGE, LARGE + 4096, 3 * LARGE])
        while lent and (sum(map(len, lent)) + size > budget or random.random() < 0.3):
            lent.pop(random.randrange(len(lent)))
        lent.append(places.take(size))
        assert places.bytes_lent == sum(map(len, lent))
        assert places.bytes_lent + places.bytes_kept <= budget
        assert len(set(map(address, lent))) == len(lent)


async def test_the_sizes_that_were_not_wanted_for_longest_give_way() -> None:
    places = FeaturePlaces(budget_bytes=6 * LARGE)
    wheres = {size: address(places.take(size)) for size in (LARGE, 2 * LARGE, 3 * LARGE)}
    assert places.bytes_kept == 6 * LARGE
    assert address(places.take(LARGE)) == wheres[LARGE]
    other = places.take(2 * LARGE + 4096)  # Takes the room of the one of twice the size and of the next one.
    assert places.bytes_lent == len(other)
    assert places.bytes_kept == LARGE


async def test_a_place_may_come_back_from_any_thread() -> None:
    places = FeaturePlaces(budget_bytes=8 * LARGE)
    held = [[places.take(LARGE)] for _ in range(8)]
    threads = [threading.Thread(target=each.clear) for each in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (places.bytes_lent, places.bytes_kept) == (0, 8 * LARGE)


async def test_memory_is_given_back_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[tuple[int, int]] = []
    unmap = feature_memory._unmap

    def noting(memory: memoryview) -> None:
        freed.append((memory.nbytes, threading.get_ident()))
        unmap(memory)

    monkeypatch.setattr(feature_memory, "_unmap", noting)
    places = FeaturePlaces(budget_bytes=2 * LARGE)
    first = places.take(LARGE)
    mapping = weakref.ref(mapping_of(first))
    del first
    places.take(2 * LARGE)
    async with asyncio.timeout(5):
        while not freed:
            await asyncio.sleep(0.01)
    assert [size for size, _ in freed] == [LARGE]
    assert threading.get_ident() not in [thread for _, thread in freed]
    assert mapping() is None


async def test_nothing_is_left_of_places_that_are_gone() -> None:
    places = FeaturePlaces(budget_bytes=4 * LARGE)
    kept, lent = places.take(LARGE), places.take(LARGE)
    mappings = [weakref.ref(mapping_of(each)) for each in (kept, lent)]
    del kept
    assert places.bytes_kept == LARGE
    del places
    assert mappings[0]() is None
    assert mappings[1]() is not None
    lent[:] = b"x" * LARGE
    del lent
    assert mappings[1]() is None


def mapping_of(place: memoryview) -> object:
    owner = place.obj
    assert isinstance(owner, np.ndarray)
    return owner.base


async def test_a_store_lends_the_place_of_features_that_gave_way() -> None:
    encoder = FakeEncoder()
    store = FeatureStore(encoder, budget_bytes=LARGE)
    wheres = []
    for name in "abc":
        (lease,) = await take(store, [picture(name)])
        await settle()
        await encoder.finish(name)
        features = (await lease.arrived()).data
        assert bytes(features[:3]) == 3 * name.encode()
        wheres.append(address(features))
        lease.release()
        del features, lease
    assert len(set(wheres)) == 1
    assert (store.bytes_held, store.bytes_cached) == (0, LARGE)


@pytest.mark.parametrize("how", ["cancelled", "failed", "cancelled and failed"])
async def test_features_that_did_not_come_give_their_place_back_once(how: str) -> None:
    encoder = FakeEncoder()
    store = FeatureStore(encoder, budget_bytes=4 * LARGE)
    (lease,) = await take(store, [picture("a")])
    await settle()
    if "failed" in how:
        encoder.running["a"].set_exception(UnavailableError("VISION_UNAVAILABLE", "it broke"))
    if "cancelled" in how:
        lease.release()
    await settle()
    lease.release()
    del lease
    gc.collect()
    places = store._places
    assert (places.bytes_lent, places.bytes_kept) == (0, LARGE)
    taken = [places.take(LARGE) for _ in range(4)]
    assert len(set(map(address, taken))) == 4


@pytest.mark.parametrize("behaviour", [forever, corrupt])
async def test_a_stream_that_breaks_or_is_left_gives_its_place_back_and_no_features(behaviour: Behaviour) -> None:
    replica = FakeReplica(behaviour)
    async with client_of(replica) as client:
        store = FeatureStore(client, budget_bytes=4 * spec_of().num_bytes)
        await fill(store, b"\x55")
        (lease,) = await take(store, [PromptImage(data=b"h", spec=spec_of())])
        arrived = asyncio.create_task(lease.arrived())
        await asyncio.sleep(0.2)
        lease.release()
        del lease
        (outcome,) = await asyncio.gather(arrived, return_exceptions=True)
        assert isinstance(outcome, BaseException)
        del outcome, arrived
        await settle()
        gc.collect()
        assert store._places.bytes_lent == 0
        assert store.bytes_held == 0


async def test_nothing_of_what_a_place_had_is_among_the_next_features() -> None:
    async with client_of(FakeReplica()) as client:
        store = FeatureStore(client, budget_bytes=spec_of().num_bytes)
        where = await fill(store, b"\x55")
        (lease,) = await take(store, [PromptImage(data=b"h", spec=spec_of())])
        features = await lease.arrived()
        assert address(features.data) == where, "it is the same memory"
        assert features.data == rows_of()
        lease.release()


async def fill(store: FeatureStore, byte: bytes) -> int:
    """Have a used place in a store, with such bytes in it; returns where."""
    place = store._places.take(spec_of().num_bytes)
    place[:] = byte * len(place)
    return address(place)


def picture(name: str) -> PromptImage:
    spec = FeatureSpec(image_hash=ImageHash(name.encode()), grid=PatchGrid(32, 32), width=512, dtype="float32")
    assert spec.num_bytes == LARGE
    return PromptImage(data=name.encode(), spec=spec)


async def take(store: FeatureStore, images: list[PromptImage]) -> list[Lease]:
    leases: list[Lease] = []
    await store.lease(images, salt=b"", request_id="r", take=lambda _, lease: leases.append(lease))
    return leases
