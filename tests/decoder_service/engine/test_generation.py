"""A request on the event loop, with a real engine on its thread: every way to its end frees all that it held."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from common.errors import AlreadyExistsError, InternalError, UnavailableError
from decoder_service.engine.generation import Generation
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import TokenOutput
from tests.decoder_service.engine.bench import Bench, expected

NEVER = 1e12


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Idle again after the test: blocks, requests, bytes and tasks."""
    bench = Bench()
    bench.host.start()
    yield bench
    bench.runner.may_step.set()
    await bench.host.stop()
    await asyncio.sleep(0)
    stats = bench.host.stats
    assert (stats.num_waiting, stats.num_running, bench.host.num_requests) == (0, 0, 0) or bench.deaths
    assert stats.num_free_blocks == stats.num_blocks or bench.deaths
    assert bench.store.bytes_held == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def tokens_of(generation: Generation) -> list[int]:
    async with generation:
        return [token.token_id async for tokens in generation.tokens(deadline=NEVER) for token in tokens]


async def test_text_gets_its_tokens(bench: Bench) -> None:
    assert await tokens_of(bench.generation("a")) == expected([2, 2, 2, 4], 5)


async def test_a_request_is_forgotten_with_its_last_token(bench: Bench) -> None:
    async with bench.generation("a") as generation:
        assert [token async for tokens in generation.tokens(deadline=NEVER) for token in tokens]
        assert bench.host.num_requests == 0


async def test_features_are_let_go_once_their_rows_are_computed(bench: Bench) -> None:
    generation = bench.generation("a", pictures="pq", max_tokens=30)
    async with generation:
        await bench.finish_encoding("p", "q")
        tokens = generation.tokens(deadline=NEVER)
        await anext(tokens)
        assert bench.store.bytes_held == 0
        await tokens.aclose()


async def test_times_add_up_without_overlap(bench: Bench) -> None:
    generation = bench.generation("a", pictures="p")
    async with generation:
        await bench.finish_encoding("p")
        _ = [tokens async for tokens in generation.tokens(deadline=NEVER)]
    timings = generation.timings(0)
    assert min(timings.queue, timings.encode_wait, timings.prefill, timings.decode) >= 0
    assert timings.encode_wait > 0


class Times:
    """Remembers the times between tokens."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def observe(self, value: float) -> None:
        self.seen.append(value)


async def test_tokens_that_one_step_told_have_one_time_to_those_before(bench: Bench) -> None:
    """Else many that were tried and right would make a stream that stalls look like one that does not."""
    times = Times()
    generation = bench.generation("a", max_tokens=40, gaps=times, n=2)
    for at in (1.0, 3.0, 3.0, 3.0, 3.5):
        for index in range(2):
            generation.token(TokenOutput("a", 7, index=index), at)
    assert times.seen == [2.0, 2.0, 0.5, 0.5]
    assert generation.timings(0).decode == 2.5


async def test_failed_encoding_fails_its_request_alone(bench: Bench) -> None:
    other = asyncio.create_task(tokens_of(bench.generation("bb", max_tokens=20)))
    async with bench.generation("a", pictures="pq") as generation:
        while "p" not in bench.encoder.running:
            await asyncio.sleep(0.001)
        await bench.encoder.finish("p", UnavailableError("VISION_UNAVAILABLE", "gone"))
        with pytest.raises(UnavailableError):
            await anext(generation.tokens(deadline=NEVER))
    assert await other == expected([3, 3, 3, 4], 20)


@pytest.mark.parametrize("arrived", ["", "p", "pq"])
async def test_caller_that_leaves_while_images_are_on_their_way(bench: Bench, arrived: str) -> None:
    async with bench.generation("a", pictures="pq", max_tokens=40):
        await bench.finish_encoding(*arrived)


async def test_caller_that_is_cancelled_in_a_step_is_forgotten_after_it(bench: Bench) -> None:
    bench.runner.may_step.clear()
    caller = asyncio.create_task(tokens_of(bench.generation("a", max_tokens=40)))
    await asyncio.sleep(0.02)
    caller.cancel()
    await asyncio.sleep(0.02)
    bench.runner.may_step.set()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_caller_that_is_cancelled_while_its_request_is_taken_leaves_none_behind(bench: Bench) -> None:
    bench.runner.may_step.clear()
    first = asyncio.create_task(tokens_of(bench.generation("a")))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(tokens_of(bench.generation("bb", max_tokens=40)))
    await asyncio.sleep(0.02)
    second.cancel()
    await asyncio.sleep(0.02)
    bench.runner.may_step.set()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await first == expected([2, 2, 2, 4], 5)
    assert bench.host.num_requests == 0


async def test_nothing_is_fetched_any_more_for_a_caller_who_has_left(bench: Bench) -> None:
    async with bench.generation("a", pictures="pq"):
        await bench.finish_encoding("p")
        assert any("ImageFetch" in repr(task.get_coro()) for task in asyncio.all_tasks())
    assert not any("ImageFetch" in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_who_leaves_an_engine_that_has_died_hears_of_that_once(bench: Bench) -> None:
    bench.runner.fatal = SystemExit("the device is gone")
    async with bench.generation("a") as generation:
        with pytest.raises(UnavailableError):
            await anext(generation.tokens(deadline=NEVER))


@pytest.mark.breaks_the_books
async def test_who_leaves_an_engine_that_was_stopped_does_not_hear_of_that() -> None:
    bench = Bench()
    bench.host.start()
    async with bench.generation("a", pictures="p"):
        await bench.finish_encoding("p")
        await bench.host.stop()
    await asyncio.sleep(0)
    assert bench.store.bytes_held == 0


async def test_deadline_is_a_timeout(bench: Bench) -> None:
    async with bench.generation("a", pictures="p") as generation:
        with pytest.raises(TimeoutError):
            await anext(generation.tokens(deadline=asyncio.get_running_loop().time() + 0.02))


async def test_no_deadline_is_missed(bench: Bench) -> None:
    """The loop's alarms may come a moment before its clock shows their time, and nobody else wakes who waits."""
    now = asyncio.get_running_loop().time()
    deadlines = [now + 0.002 + index * 0.00013 for index in range(300)]
    waiting = [asyncio.ensure_future(anext(bench.generation("a").tokens(deadline=each))) for each in deadlines]
    ended, others = await asyncio.wait(waiting, timeout=5)
    for each in others:
        each.cancel()
    assert not others
    assert all(isinstance(each.exception(), TimeoutError) for each in ended)


async def test_deadline_comes_also_where_there_is_always_news(bench: Bench) -> None:
    generation = bench.generation("a", max_tokens=40)
    generation.token(TokenOutput("a", 1), 0.0)
    reader = generation.tokens(deadline=asyncio.get_running_loop().time() - 1)
    assert [token.token_id for token in await anext(reader)] == [1]
    generation.token(TokenOutput("a", 2), 0.0)
    with pytest.raises(TimeoutError):
        await anext(reader)


async def test_name_in_use_is_refused_and_its_owner_goes_on(bench: Bench) -> None:
    bench.runner.may_step.clear()
    owner = asyncio.create_task(tokens_of(bench.generation("a", max_tokens=9)))
    await asyncio.sleep(0.02)
    with pytest.raises(AlreadyExistsError):
        await tokens_of(bench.generation("a"))
    bench.runner.may_step.set()
    assert await owner == expected([2, 2, 2, 4], 9)


async def test_pictures_in_the_prefix_cache_are_not_fetched(bench: Bench) -> None:
    for name, question, unknown in (("a", "pq", "pq"), ("b", "pqr", "r")):
        # The same text before the pictures, which fill the first two blocks.
        generation = bench.generation(name, pictures=question, length=4)
        async with generation:
            await bench.finish_encoding(*unknown)
            _ = [tokens async for tokens in generation.tokens(deadline=NEVER)]
    assert bench.encoder.started == ["p", "q", "r"]
    assert (generation.num_cached_tokens, generation.num_images_not_encoded) == (8, 2)
    assert bench.host.stats.num_images_covered == 2
    assert bench.store.num_found == 0


async def test_equal_pictures_at_once_are_encoded_for_one_of_their_requests(bench: Bench) -> None:
    first, second = (bench.generation(name, pictures="p") for name in ("a", "bb"))
    asked = [asyncio.create_task(tokens_of(generation)) for generation in (first, second)]
    await bench.finish_encoding("p")
    await asyncio.gather(*asked)
    assert bench.encoder.started == ["p"]
    assert first.num_images_not_encoded + second.num_images_not_encoded == 1


async def test_features_of_a_request_that_was_not_finite_are_not_given_to_the_next_one(bench: Bench) -> None:
    bench.runner.not_finite.add("a")
    failing = asyncio.create_task(tokens_of(bench.generation("a", pictures="p")))
    await bench.finish_encoding("p")
    with pytest.raises(InternalError):
        await failing
    assert bench.store.bytes_cached == 0
    async with bench.generation("bb", pictures="p"):
        await bench.finish_encoding("p")
    assert bench.encoder.started == ["p", "p"]


@pytest.mark.parametrize("caching", [False, True])
async def test_requests_that_outgrow_the_cache_fetch_their_images_again(caching: bool) -> None:
    bench = Bench(num_blocks=12, caching=caching)
    bench.host.start()
    asked = [asyncio.create_task(tokens_of(bench.generation("x" * n, pictures="pq", max_tokens=30))) for n in (1, 2, 3)]

    async def encode_all() -> None:
        while True:
            for name in list(bench.encoder.running):
                await bench.encoder.finish(name)
            await asyncio.sleep(0.001)

    encoding = asyncio.create_task(encode_all())
    for n, task in enumerate(asked, start=1):
        assert await asyncio.wait_for(task, 20) == expected([*[n + 1] * 3, 10, 13, 10, 13, 4], 30)
    encoding.cancel()
    assert bench.host.stats.num_preemptions > 0
    assert (len(bench.encoder.started) > 2) != caching, "what is fetched again from a cache is not encoded again"
    assert bench.store.bytes_held == 0
    await bench.host.stop()


async def test_death_of_the_engine_is_told_to_everyone(bench: Bench) -> None:
    bench.runner.fatal = SystemExit("the device is gone")
    with pytest.raises(UnavailableError, match="no longer"):
        await tokens_of(bench.generation("a"))
    with pytest.raises(UnavailableError):
        await tokens_of(bench.generation("b"))
    assert bench.deaths == 1


async def test_name_is_not_free_before_the_engine_has_forgotten_it(bench: Bench) -> None:
    """Else a new request of that name would hear the token of a step that began for the old one."""
    bench.runner.may_step.clear()
    first = asyncio.create_task(tokens_of(bench.generation("a", max_tokens=40)))
    await asyncio.sleep(0.02)
    first.cancel()
    await asyncio.sleep(0.02)
    with pytest.raises(AlreadyExistsError):
        await tokens_of(bench.generation("a"))
    bench.runner.may_step.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await tokens_of(bench.generation("a")) == expected([2, 2, 2, 4], 5)


async def test_call_that_waits_when_the_engine_dies_is_answered(bench: Bench) -> None:
    bench.runner.may_step.clear()
    bench.runner.fatal = SystemExit("the device is gone")
    running = asyncio.create_task(tokens_of(bench.generation("a")))
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(tokens_of(bench.generation("b")))
    await asyncio.sleep(0.02)
    bench.runner.may_step.set()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(running, 10)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(waiting, 10)


async def test_request_whose_reader_is_behind_is_paused_and_goes_on_with_the_same_tokens(bench: Bench) -> None:
    bench.runner.seconds = 0.002
    async with bench.generation("slow", max_tokens=40, max_unread_tokens=4) as generation:
        reader = generation.tokens(deadline=NEVER)
        heard = [token.token_id for token in await anext(reader)]
        others = await asyncio.gather(*(tokens_of(bench.generation("x" * n, max_tokens=40)) for n in (1, 2)))
        assert others == [expected([n + 1] * 3 + [4], 40) for n in (1, 2)], "they are not held up"
        num_steps = bench.host.stats.num_steps
        await asyncio.sleep(0.05)
        assert bench.host.stats.num_steps == num_steps
        pieces = [tokens async for tokens in reader]
        assert 4 < len(pieces[0]) < 20, "what had gathered comes in one piece"
        heard += [token.token_id for tokens in pieces for token in tokens]
    assert heard == expected([5] * 3 + [4], 40)


async def handed_over(generation: Generation, lengths: Sequence[int], *, deadline: float = NEVER) -> list[list[int]]:
    """Which completions the pieces' tokens are of, where each has so many tokens and the reader is never behind."""
    pieces: list[list[int]] = []

    async def read() -> None:
        async for tokens in generation.tokens(deadline=deadline):
            pieces.append([token.index for token in tokens])

    reader = asyncio.create_task(read())
    for number in range(1, max(lengths) + 1):
        for index in (index for index, length in enumerate(lengths) if number <= length):
            for _ in range(5):
                await asyncio.sleep(0)
            reason = FinishReason.LENGTH if number == lengths[index] and deadline == NEVER else None
            generation.token(TokenOutput("by hand", number, finish_reason=reason, index=index), 0.0)
    if deadline == NEVER:
        await reader
    else:
        with pytest.raises(TimeoutError):
            await reader
    return pieces


@pytest.mark.parametrize(("interval", "sizes"), [(1, [1] * 11), (4, [1, 4, 4, 2]), (100, [1, 10])])
async def test_tokens_come_so_many_at_a_time_but_the_first_and_the_last_wait_for_none(
    bench: Bench, interval: int, sizes: list[int]
) -> None:
    pieces = await handed_over(bench.generation("some", interval=interval), [11])
    assert [len(piece) for piece in pieces] == sizes


async def test_a_completion_s_tokens_come_as_many_at_a_time_when_the_others_have_ended(bench: Bench) -> None:
    pieces = await handed_over(bench.generation("some", n=3, interval=4), [5, 5, 16])
    assert [piece.count(2) for piece in pieces if set(piece) == {2}][-3:] == [4, 4, 4]


async def test_reader_who_keeps_up_is_not_paused_by_gathering(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[str] = []
    monkeypatch.setattr(bench.host, "pause", paused.append)
    pieces = await handed_over(bench.generation("some", max_unread_tokens=6, interval=20), [30])
    assert [len(piece) for piece in pieces] == [1, 6, 6, 6, 6, 5]
    assert not paused


async def test_request_is_paused_as_often_as_its_reader_falls_behind_and_goes_on_as_often(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(bench.host, "pause", lambda _: heard.append("pause"))
    monkeypatch.setattr(bench.host, "resume", lambda _: heard.append("resume"))
    generation = bench.generation("some", max_unread_tokens=3)
    reader = generation.tokens(deadline=NEVER)
    for count, told in ((3, []), (6, ["pause"]), (2, []), (4, ["pause"])):
        heard.clear()
        for number in range(count):
            generation.token(TokenOutput("by hand", number), 0.0)
        assert heard == told
        assert len(await anext(reader)) == count
        assert heard == [*told, "resume"][: 2 * len(told)]


async def test_what_has_gathered_is_handed_over_before_time_is_up(bench: Bench) -> None:
    deadline = asyncio.get_running_loop().time() + 0.2
    assert await handed_over(bench.generation("late", interval=40), [7], deadline=deadline) == [[0], [0] * 6]


async def test_completions_gather_their_tokens_and_lose_none(bench: Bench) -> None:
    bench.runner.seconds = 0.002
    async with bench.generation("some", max_tokens=11, n=3, interval=4) as generation:
        pieces = [tokens async for tokens in generation.tokens(deadline=NEVER)]
    assert len(pieces) < 11
    for index in range(3):
        heard = [token.token_id for tokens in pieces for token in tokens if token.index == index]
        assert heard == expected([5] * 3 + [4], 11)


@pytest.mark.parametrize("n", [2, 4])
async def test_all_completions_of_a_request_whose_reader_is_behind_are_paused(bench: Bench, n: int) -> None:
    bench.runner.seconds = 0.002
    async with bench.generation("slow", max_tokens=12, max_unread_tokens=2 * n, n=n) as generation:
        reader = generation.tokens(deadline=NEVER)
        heard = await anext(reader)
        others = asyncio.gather(*(tokens_of(bench.generation("x" * count, max_tokens=40)) for count in (1, 2)))
        assert await others == [expected([count + 1] * 3 + [4], 40) for count in (1, 2)], "they are not held up"
        num_steps = bench.host.stats.num_steps
        await asyncio.sleep(0.05)
        assert bench.host.stats.num_steps == num_steps, "no completion goes on"
        pieces = [tokens async for tokens in reader]
        gathered = [sum(token.index == index for token in pieces[0]) for index in range(n)]
        assert all(0 < count < 11 for count in gathered), gathered
        heard += [token for tokens in pieces for token in tokens]
    for index in range(n):
        assert [token.token_id for token in heard if token.index == index] == expected([5] * 3 + [4], 12)


async def test_paused_request_is_the_first_to_give_way_and_its_images_wait_with_it() -> None:
    bench = Bench(num_blocks=12)
    bench.runner.seconds = 0.002
    bench.host.start()
    async with bench.generation("slow", pictures="p", max_tokens=36, max_unread_tokens=2) as generation:
        await bench.finish_encoding("p")
        reader = generation.tokens(deadline=NEVER)
        heard = [token.token_id for token in await anext(reader)]
        await asyncio.sleep(0.05)
        others = await asyncio.gather(*(tokens_of(bench.generation("x" * n, max_tokens=20)) for n in (1, 2, 3)))
        assert others == [expected([n + 1] * 3 + [4], 20) for n in (1, 2, 3)]
        assert bench.host.stats.num_preemptions >= 1
        assert (bench.host.stats.num_running, bench.store.bytes_held) == (0, 0)
        heard += [token.token_id async for tokens in reader for token in tokens]
    assert heard == expected([5] * 3 + [10, 13, 4], 36)
    await bench.host.stop()


async def test_age_of_the_step_under_way_can_be_seen_from_outside(bench: Bench) -> None:
    bench.runner.may_step.clear()
    asked = asyncio.create_task(tokens_of(bench.generation("a")))
    await asyncio.sleep(0.05)
    since = bench.host.busy_since
    assert since is not None
    assert 0.01 < time.monotonic() - since < 10
    bench.runner.may_step.set()
    await asked
    await asyncio.sleep(0.02)
    assert bench.host.busy_since is None


@pytest.mark.parametrize("ends", ["with a token", "with an error"])
async def test_first_news_are_waited_for_and_lost_to_nobody(bench: Bench, ends: str) -> None:
    loop = asyncio.get_running_loop()
    generation = bench.generation("a")
    waiting = asyncio.create_task(generation.first_news(until=NEVER))
    await asyncio.sleep(0)
    assert not waiting.done()
    if ends == "with a token":
        generation.token(TokenOutput("a", 1), 0.0)
        await asyncio.wait_for(waiting, 5)
        await generation.first_news(until=NEVER)
        assert [token.token_id for token in await anext(generation.tokens(deadline=NEVER))] == [1]
    else:
        generation.failed(UnavailableError("ENGINE_DIED", "gone"))
        await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(generation.first_news(until=NEVER), 5)
        with pytest.raises(UnavailableError):
            await anext(generation.tokens(deadline=loop.time() + 5))


async def test_who_waits_for_first_news_goes_on_without_them_when_the_time_is_up(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    generation = bench.generation("a")
    for until in (loop.time() - 1, loop.time() + 0.02):
        await asyncio.wait_for(generation.first_news(until=until), 5)
    generation.token(TokenOutput("a", 1), 0.0)
    assert [token.token_id for token in await anext(generation.tokens(deadline=NEVER))] == [1]
