"""Feature memory: credits in order, sharing in flight, and what nobody holds kept only while there is room."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from common.errors import InvalidArgumentError, UnavailableError
from decoder_service.cache.feature_store import FeatureStore, Lease
from tests.decoder_service.encoder_fakes import ROW, FakeEncoder, image, settle


@pytest.fixture
async def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
async def store(encoder: FakeEncoder) -> AsyncIterator[FeatureStore]:
    """Room for three small images; empty again, without a task, after the test."""
    store = FeatureStore(encoder, budget_bytes=3 * ROW)
    yield store
    await settle()
    assert store.bytes_held == 0
    assert not encoder.running
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_equal_images_in_flight_are_encoded_once(store: FeatureStore, encoder: FakeEncoder) -> None:
    first, second = await take(store, ["a"]), await take(store, ["a"])
    await encoder.finish("a")
    assert [bytes((await lease.arrived()).data) for lease in (*first, *second)] == [b"aaaa"] * 2
    assert encoder.started == ["a"]
    assert store.bytes_held == ROW
    first[0].release()
    assert store.bytes_held == ROW
    second[0].release()


async def test_releasing_twice_counts_once(store: FeatureStore, encoder: FakeEncoder) -> None:
    (mine,), (other,) = await take(store, ["a"]), await take(store, ["a"])
    mine.release()
    mine.release()
    assert encoder.running, "the other one still waits for it"
    other.release()


async def test_encoding_stops_when_the_last_holder_leaves(store: FeatureStore, encoder: FakeEncoder) -> None:
    (lease,) = await take(store, ["a"])
    await settle()
    lease.release()
    assert store.bytes_held == ROW, "the buffer may still be written"
    await settle()
    assert store.bytes_held == 0


async def test_image_wanted_again_while_its_encoding_dies_is_encoded_anew(
    store: FeatureStore, encoder: FakeEncoder
) -> None:
    (lease,) = await take(store, ["a"])
    await settle()
    lease.release()
    leases: list[Lease] = []
    # At once: in another task it would come when the encoding is dead already.
    await store.lease([image("a")], salt=b"", request_id="r", take=lambda _, lease: leases.append(lease))
    (again,) = leases
    await settle()
    await encoder.finish("a")
    assert bytes((await again.arrived()).data) == b"aaaa"
    again.release()


async def test_failure_reaches_every_holder_and_is_not_remembered(store: FeatureStore, encoder: FakeEncoder) -> None:
    leases = [*await take(store, ["a"]), *await take(store, ["a"])]
    await settle()
    await encoder.finish("a", UnavailableError("VISION_UNAVAILABLE", "gone"))
    for lease in leases:
        with pytest.raises(UnavailableError):
            await lease.arrived()
        lease.release()
    (again,) = await take(store, ["a"])
    await settle()
    await encoder.finish("a")
    await again.arrived()
    again.release()
    assert encoder.started == ["a", "a"]


async def test_who_asks_in_the_moment_of_a_failure_does_not_get_it(store: FeatureStore, encoder: FakeEncoder) -> None:
    """Between the end of an encoding and the store's hearing of it there is a turn of the loop."""
    (failing,) = await take(store, ["a"])
    await settle()
    encoder.running["a"].set_exception(UnavailableError("VISION_UNAVAILABLE", "gone"))
    asking, leases = start_taking(store, ["a"])
    await settle()
    assert encoder.started == ["a", "a"]
    await encoder.finish("a")
    await asking
    await leases[0].arrived()
    leases[0].release()
    with pytest.raises(UnavailableError):
        await failing.arrived()
    failing.release()
    assert store.bytes_held == 0


async def test_memory_is_given_first_come_first_served_and_in_prompt_order(
    store: FeatureStore, encoder: FakeEncoder
) -> None:
    holder = await take(store, ["a", "b"])
    big, big_taken = start_taking(store, ["c", "d"])
    small, small_taken = start_taking(store, ["e"])
    await settle()
    assert (len(big_taken), len(small_taken)) == (1, 0), "the small one came later and waits its turn"
    holder[0].release()
    await asyncio.gather(big)
    assert encoder.started == ["a", "b", "c", "d"]
    holder[1].release()
    await asyncio.gather(small)
    for lease in (*big_taken, *small_taken):
        lease.release()


async def test_a_small_image_does_not_take_the_memory_that_a_large_one_before_it_waits_for(store: FeatureStore) -> None:
    holder = await take(store, ["a", "b", "c"])
    large, large_taken = start_taking(store, ["dd"])
    small, small_taken = start_taking(store, ["e"])
    await settle()
    holder[0].release()
    await settle()
    assert not small_taken
    holder[1].release()
    await large
    holder[2].release()
    await small
    for lease in (*large_taken, *small_taken):
        lease.release()


async def test_who_waits_for_memory_gets_that_of_features_which_nobody_holds_any_more(
    store: FeatureStore, encoder: FakeEncoder
) -> None:
    holder = await take(store, ["a", "b", "c"])
    await settle()
    await encoder.finish("a")
    waiter, taken = start_taking(store, ["d"])
    await settle()
    holder[0].release()
    await asyncio.wait_for(waiter, 5)
    for lease in (*holder, *taken):
        lease.release()


async def test_request_that_leaves_the_queue_lets_the_next_one_in(store: FeatureStore) -> None:
    holder = await take(store, ["a", "b", "c"])
    leaver, left = start_taking(store, ["d"])
    waiter, taken = start_taking(store, ["e"])
    await settle()
    leaver.cancel()
    await settle()
    assert not left
    holder[0].release()
    await waiter
    for lease in (*holder, *taken):
        lease.release()


async def test_images_larger_than_all_memory_are_refused_with_both_numbers(store: FeatureStore) -> None:
    store.check_fits([image("a"), image("a"), image("b"), image("c")])
    with pytest.raises(InvalidArgumentError) as caught:
        store.check_fits([image(name) for name in "abcd"])
    assert caught.value.metadata == {"limit": "12", "got": "16"}


async def test_what_nobody_holds_is_kept_and_given_out_again(store: FeatureStore, encoder: FakeEncoder) -> None:
    await use(store, encoder, "a")
    assert (store.bytes_held, store.bytes_cached) == (0, ROW)
    (again,) = await take(store, ["a"])
    assert not again.is_first
    assert bytes((await again.arrived()).data) == b"aaaa"
    assert (store.bytes_held, store.bytes_cached) == (ROW, 0)
    again.release()
    assert encoder.started == ["a"]
    assert (store.num_encoded, store.num_found) == (1, 1)


async def test_the_longest_unused_gives_way_and_only_as_far_as_memory_is_needed(
    store: FeatureStore, encoder: FakeEncoder
) -> None:
    for name in "abc":
        await use(store, encoder, name)
    await use(store, encoder, "a")
    await use(store, encoder, "d")
    assert store.bytes_cached == 3 * ROW
    for name in "acd":
        await use(store, encoder, name)
    assert encoder.started == ["a", "b", "c", "d"]
    await use(store, encoder, "b")
    assert encoder.started[-1] == "b"


async def test_nobody_waits_for_memory_that_nobody_holds(store: FeatureStore, encoder: FakeEncoder) -> None:
    for name in "abc":
        await use(store, encoder, name)
    for lease in await asyncio.wait_for(take(store, ["d", "e", "f"]), 1):
        lease.release()


@pytest.mark.parametrize("is_told", [False, True])
async def test_failed_features_are_not_kept(store: FeatureStore, encoder: FakeEncoder, is_told: bool) -> None:
    (lease,) = await take(store, ["a"])
    await asyncio.sleep(0)
    encoder.running["a"].set_exception(UnavailableError("VISION_UNAVAILABLE", "gone"))
    for _ in range(10):
        # Released as soon as the encoding has ended, or after everyone was told of it.
        await asyncio.sleep(0)
        if lease.entry.encoding.done() and not is_told:
            break
    lease.release()
    await settle()
    assert store.bytes_cached == 0


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_what_is_let_go_in_the_moment_it_is_complete_counts_once(
    store: FeatureStore, encoder: FakeEncoder, is_forgotten: bool
) -> None:
    """Between the end of an encoding and the store's hearing of it there is a turn of the loop."""
    (lease,) = await take(store, ["a"])
    await settle()
    encoder.running["a"].set_result(None)
    while not lease.entry.encoding.done():
        await asyncio.sleep(0)
    lease.release()
    if is_forgotten:
        store.forget([image("a")])
    await settle()
    assert (store.bytes_held, store.bytes_cached) == (0, 0 if is_forgotten else ROW)


async def test_features_that_are_forgotten_on_their_way_stay_with_those_who_wait_for_them(
    store: FeatureStore, encoder: FakeEncoder
) -> None:
    (lease,) = await take(store, ["a"])
    await settle()
    store.forget([image("a")])
    await encoder.finish("a")
    assert bytes((await lease.arrived()).data) == b"aaaa"
    assert store.bytes_held == ROW
    lease.release()
    assert (store.bytes_held, store.bytes_cached) == (0, 0)


@pytest.mark.parametrize("is_held", [False, True])
async def test_forgotten_features_are_given_to_nobody_new(
    store: FeatureStore, encoder: FakeEncoder, is_held: bool
) -> None:
    await use(store, encoder, "a")
    held = await take(store, ["a"]) if is_held else []
    store.forget([image("a"), image("never")])
    assert store.bytes_cached == 0
    await use(store, encoder, "a")
    assert encoder.started == ["a", "a"]
    for lease in held:
        lease.release()
    assert (store.bytes_held, store.bytes_cached) == (0, ROW), "what was made anew"


async def test_without_caching_nothing_is_kept(encoder: FakeEncoder) -> None:
    store = FeatureStore(encoder, budget_bytes=3 * ROW, caching=False)
    for _ in range(2):
        await use(store, encoder, "a")
    assert store.bytes_cached == 0
    assert encoder.started == ["a", "a"]


async def use(store: FeatureStore, encoder: FakeEncoder, name: str) -> None:
    """Get an image's features, encoding them if need be, and let go of them."""
    (lease,) = await take(store, [name])
    await settle()
    if name in encoder.running:
        await encoder.finish(name)
    await lease.arrived()
    lease.release()
    await settle()


async def take(store: FeatureStore, names: Sequence[str]) -> list[Lease]:
    task, taken = start_taking(store, names)
    await task
    return taken


def start_taking(store: FeatureStore, names: Sequence[str]) -> tuple[asyncio.Task[None], list[Lease]]:
    taken: list[Lease] = []
    images = [image(name) for name in names]
    leasing = store.lease(images, salt=b"", request_id="r", take=lambda _, lease: taken.append(lease))
    return asyncio.create_task(leasing), taken
