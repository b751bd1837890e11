"""The event loop that writes features to their place finds memory there."""

import asyncio
import resource
import sys

import pytest

from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from decoder_service.cache.feature_memory import FeatureMemory
from decoder_service.cache.feature_store import FeatureStore, Lease, PromptImage
from tests.decoder_service.encoder_fakes import FakeEncoder, image

SIZE = 48 << 20
LARGE = PromptImage(
    data=b"large",
    spec=FeatureSpec(image_hash=ImageHash(b"large"), grid=PatchGrid(1, 1), width=SIZE // 4, dtype="float32"),
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def num_faults() -> int:
    """Pages that were missing when this thread came to them."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def faults_of_writing(place: memoryview) -> int:
    before = num_faults()
    for start in range(0, len(place), 1 << 12):
        place[start] = 1
    return num_faults() - before


def test_to_reserve_memory_touches_none_of_it() -> None:
    memory, before = FeatureMemory(), num_faults()
    places = [memory.reserve(SIZE) for _ in range(32)]
    assert num_faults() - before < len(places) / 2


async def test_no_page_is_missing_where_memory_was_touched() -> None:
    memory = FeatureMemory()
    touched, untouched = memory.reserve(SIZE), memory.reserve(SIZE)
    await memory.touch(touched)
    assert faults_of_writing(touched) < 0.1 * faults_of_writing(untouched)


class Writing(FakeEncoder):
    """Writes to the buffer, on the event loop, as soon as it gets it."""

    faults = 0

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        self.faults = faults_of_writing(buffer)


async def lease(store: FeatureStore, *images: PromptImage) -> list[Lease]:
    leases: list[Lease] = []
    await store.lease(images, salt=b"", request_id="request", take=lambda _, taken: leases.append(taken))
    return leases


async def test_an_encoder_gets_memory_that_is_there() -> None:
    encoder = Writing()
    (taken,) = await lease(FeatureStore(encoder, budget_bytes=SIZE, caching=False), LARGE)
    await taken.arrived()
    taken.release()
    assert encoder.faults < 0.1 * faults_of_writing(FeatureMemory().reserve(SIZE))


async def test_who_leaves_while_memory_is_made_has_nothing_encoded_and_its_room_given_back() -> None:
    encoder = FakeEncoder()
    store = FeatureStore(encoder, budget_bytes=SIZE, caching=False)
    (large,) = await lease(store, LARGE)
    await asyncio.sleep(0)
    large.release()
    async with asyncio.timeout(5):
        (small,) = await lease(store, image("a"))  # There is room for it when the large one's is free.
        while not encoder.started:
            await asyncio.sleep(0.01)
    assert encoder.started == ["a"]
    assert store.bytes_held == image("a").spec.num_bytes
    await encoder.finish("a")
    small.release()
