"""A second try begins only where the first takes long, and whatever ends first, nothing goes on behind it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from decoder_service.vision.hedging import hedged

LONG = 60.0


class Try:
    """Ends when it is told to."""

    def __init__(self) -> None:
        self.has_begun = False
        self.was_cancelled = False
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def succeed(self) -> None:
        self._end.set_result(None)

    def fail(self, words: str) -> None:
        self._end.set_exception(ValueError(words))

    async def run(self) -> None:
        self.has_begun = True
        try:
            await self._end
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # Something to put away.
            self.was_cancelled = True
            raise


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def no_second() -> Coroutine[Any, Any, None] | None:
    pytest.fail("a second try begins")


@pytest.fixture
async def first() -> Try:
    return Try()


@pytest.fixture
async def second() -> Try:
    return Try()


async def both(first: Try, second: Try) -> asyncio.Task[int]:
    """Two tries of which the second has begun, as the first had no time."""
    task = asyncio.create_task(hedged(first.run(), second.run, after=0.0))
    while not second.has_begun:
        await asyncio.sleep(0)
    return task


async def test_a_first_try_that_ends_in_time_is_the_only_one(first: Try) -> None:
    task = asyncio.create_task(hedged(first.run(), no_second, after=LONG))
    await settle()
    first.succeed()
    assert await asyncio.wait_for(task, 10) == 0


async def test_a_first_try_that_fails_in_time_is_not_made_again(first: Try) -> None:
    task = asyncio.create_task(hedged(first.run(), no_second, after=LONG))
    await settle()
    first.fail("mine")
    with pytest.raises(ValueError, match="mine"):
        await asyncio.wait_for(task, 10)


async def test_a_first_try_without_a_second_may_take_as_long_as_it_likes(first: Try) -> None:
    task = asyncio.create_task(hedged(first.run(), lambda: None, after=0.0))
    await asyncio.sleep(0.01)
    assert not task.done()
    first.succeed()
    assert await asyncio.wait_for(task, 10) == 0


@pytest.mark.parametrize("winner", [0, 1])
async def test_whichever_succeeds_first_counts_and_the_other_has_ended(first: Try, second: Try, winner: int) -> None:
    task = await both(first, second)
    tries = first, second
    tries[winner].succeed()
    assert await asyncio.wait_for(task, 10) == winner
    assert [each.was_cancelled for each in tries] == [winner == 1, winner == 0]


@pytest.mark.parametrize("winner", [0, 1])
async def test_one_that_fails_leaves_it_to_the_other(first: Try, second: Try, winner: int) -> None:
    task = await both(first, second)
    tries = first, second
    tries[1 - winner].fail("other")
    await settle()
    assert not task.done()
    tries[winner].succeed()
    assert await asyncio.wait_for(task, 10) == winner


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_where_both_fail_the_first_ones_error_is_raised(first: Try, second: Try, order: tuple[int, int]) -> None:
    task = await both(first, second)
    for index in order:
        (first, second)[index].fail(f"of {index}")
        await settle()
    with pytest.raises(ValueError, match="of 0"):
        await asyncio.wait_for(task, 10)


async def test_who_leaves_leaves_no_try_behind(first: Try, second: Try) -> None:
    task = await both(first, second)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.was_cancelled
    assert second.was_cancelled
