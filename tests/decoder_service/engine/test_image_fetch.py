"""What a request asks for arrives once, in its name, and nothing of it stays or runs on when it is no longer wanted."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from common.errors import DiptychError, InternalError, InvalidArgumentError, UnavailableError
from common.features.feature_spec import FeatureSpec
from common.security.principal import Principal, acting_for, current_principal
from decoder_service.cache.feature_store import FeatureStore
from decoder_service.engine.image_fetch import ImageFetch
from decoder_service.vision.image_encoder import ImageFeatures
from tests.decoder_service.encoder_fakes import ROW, FakeEncoder, image, settle


class NamingEncoder(FakeEncoder):
    """Notes in whose name it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str] = []

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        self.callers.append(current_principal().name)
        await super().encode(image, salt=salt, spec=spec, buffer=buffer, request_id=request_id)


class Bench:
    """A fetch of the images a, b and c from a store with room for two, and what came of it."""

    def __init__(self) -> None:
        self.encoder = NamingEncoder()
        self.store = FeatureStore(self.encoder, budget_bytes=2 * ROW, caching=False)
        self.delivered: list[tuple[int, bytes, int]] = []
        self.errors: list[DiptychError] = []
        self.fetch = self.fetch_of("abc")

    def fetch_of(self, names: str) -> ImageFetch:
        """A fetch of images with these letters as names."""
        images = [replace(image(name), field=f"images[{index}]") for index, name in enumerate(names)]
        return ImageFetch(self.store, images, salt=b"", request_id="r", deliver=self._deliver, fail=self.errors.append)

    def _deliver(self, index: int, features: ImageFeatures, fetch: int) -> None:
        self.delivered.append((index, bytes(features.data[:1]), fetch))


def running() -> list[str]:
    """Tasks of fetches."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("ImageFetch")]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Closed after the test, when nothing is held any more and nothing runs."""
    with acting_for(Principal("alice")):
        bench = Bench()
    yield bench
    await bench.fetch.close()
    assert running() == []
    await settle()
    assert bench.store.bytes_held == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    vars(bench).clear()  # Errors refer to what they passed through, features' memory among it.


async def test_images_are_delivered_as_they_arrive_and_held_until_they_are_consumed(bench: Bench) -> None:
    bench.fetch.begin([0, 1])
    await settle()
    await bench.encoder.finish("b")
    await bench.encoder.finish("a")
    assert bench.delivered == [(1, b"b", 1), (0, b"a", 1)]
    assert bench.store.bytes_held == 2 * ROW
    for _ in range(2):  # The second time there is nothing left to let go of.
        bench.fetch.consumed(0)
        await settle()
        assert bench.store.bytes_held == ROW
    assert bench.fetch.encoded == {0, 1}


async def test_images_are_fetched_in_the_name_of_the_call_whoever_asks_for_them(bench: Bench) -> None:
    bench.fetch.begin([0])
    await settle()
    assert bench.encoder.callers == ["alice"]


async def test_an_image_that_is_consumed_before_its_turn_gets_no_memory_to_keep(bench: Bench) -> None:
    bench.fetch.begin([0, 1, 2])
    await settle()
    bench.fetch.consumed(2)
    await bench.encoder.finish("a")
    bench.fetch.consumed(0)
    await settle()
    assert bench.store.bytes_held == ROW
    assert [index for index, _, _ in bench.delivered] == [0]


async def test_who_begins_anew_gets_nothing_of_what_was_begun_before(bench: Bench) -> None:
    bench.fetch.begin([0, 1])
    await settle()
    await bench.encoder.finish("a")
    bench.fetch.begin([1])
    await settle()
    assert bench.store.bytes_held == ROW
    await bench.encoder.finish("b")
    assert bench.delivered == [(0, b"a", 1), (1, b"b", 2)]
    bench.fetch.begin([])
    await settle()
    assert (bench.store.bytes_held, running()) == (0, [])


@pytest.mark.parametrize("num_begun", [0, 1, 2])
async def test_what_is_closed_stands_still_at_once(bench: Bench, num_begun: int) -> None:
    for _ in range(num_begun):
        bench.fetch.begin([0, 1, 2])
        await settle()
    await bench.fetch.close()
    assert running() == []
    await settle()
    assert bench.store.bytes_held == 0


@pytest.mark.parametrize(("told", "field"), [("image", "images[1]"), ("other", "other"), (None, None)])
async def test_a_failure_is_told_once_with_the_picture_s_place_in_the_request(
    bench: Bench, told: str | None, field: str | None
) -> None:
    bench.fetch.begin([0, 1])
    await settle()
    await bench.encoder.finish("b", InvalidArgumentError("IMAGE_UNDECODABLE", "no picture", field=told))
    (error,) = bench.errors
    assert (error.reason, error.field) == ("IMAGE_UNDECODABLE", field)
    assert running() == []


async def test_two_failures_at_once_are_told_as_one(bench: Bench) -> None:
    bench.fetch.begin([0, 1])
    await settle()
    for running_one in list(bench.encoder.running.values()):
        running_one.set_exception(UnavailableError("VISION_UNAVAILABLE", "gone"))
    await settle()
    assert [error.reason for error in bench.errors] == ["VISION_UNAVAILABLE"]


async def test_of_equal_pictures_one_is_encoded_for_a_request(bench: Bench) -> None:
    other = bench.fetch_of("a")
    other.begin([0])
    await settle()
    bench.fetch.begin([0, 1])
    await settle()
    assert (other.encoded, bench.fetch.encoded) == ({0}, {1})
    await other.close()


async def test_what_is_forgotten_is_encoded_again_for_the_next_one(bench: Bench) -> None:
    bench.fetch.begin([0])
    await settle()
    bench.fetch.forget()
    other = bench.fetch_of("a")
    other.begin([0])
    await settle()
    assert bench.encoder.started == ["a", "a"]
    await other.close()


async def test_a_bug_is_told_as_one_without_its_text(bench: Bench) -> None:
    bench.fetch.begin([0])
    task = bench.fetch._task
    await settle()
    await bench.encoder.finish("a", RuntimeError("secret"))
    (error,) = bench.errors
    assert isinstance(error, InternalError)
    assert error.reason == "ENCODE_FAILED"
    assert "secret" not in error.message
    assert task is not None
    assert isinstance(task.exception(), ExceptionGroup)
