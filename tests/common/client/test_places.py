"""Places of calls are given first come first served, and none is lost."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import grpc
import pytest

from common.client.places import Places, end_after
from common.client.types import ClientError
from tests.waiting import until


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[None]:
    with pytest.raises(ClientError) as raised:
        yield
    assert raised.value.code is code


def held(places: Places) -> Generator[None, None, None]:
    """A place that is had until this is closed."""
    with places.one(None):
        yield


def take(places: Places) -> bool:
    """Whether a place could be had soon; it is given back."""
    try:
        with places.one(end_after(0.02)):
            return True
    except ClientError:
        return False


class Countdown:
    """Does something in the midst of something else, before so many lines of Python have run."""

    def __init__(self, lines: int, act: Callable[[], None]) -> None:
        self.left = lines
        self._act = act

    def around(self, work: Callable[[], object]) -> None:
        sys.settrace(self._trace)
        work()
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ANN401
        self.left -= 1
        if self.left == 0:
            self._act()
        return self._trace


async def test_a_thread_that_comes_late_waits_no_longer_than_for_those_before_it() -> None:
    """Others come back at once for another turn, and would have taken each place before it woke up."""
    places, turns, stop = Places(2), [0], threading.Event()

    def loop() -> None:
        while not stop.is_set():
            with places.one(None):
                turns[0] += 1
                time.sleep(0.001)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = turns[0]
            with places.one(end_after(30)):
                assert turns[0] - before <= 2 * len(threads)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("number", [1, 2])
def test_a_place_may_be_given_back_in_the_midst_of_any_operation(number: int) -> None:
    """As by the garbage collector, which closes a lost stream in whatever its thread is at."""
    moment, is_over = 0, False
    while not is_over:
        moment += 1
        places = Places(number)
        stream = held(places)
        next(stream)
        countdown = Countdown(moment, stream.close)
        thread = threading.Thread(target=countdown.around, args=(partial(take, places),), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), f"stands still at {moment}"
        is_over = countdown.left > 0
        stream.close()
        every = [held(places) for _ in range(number)]
        for each in every:
            next(each)
        assert not take(places)
    assert moment > 10


async def test_whoever_gives_up_leaves_no_place_behind_and_takes_none_along() -> None:
    places = Places(1)

    async def one(seconds: float) -> None:
        async with places.one_async(None):
            await asyncio.sleep(seconds)

    first = asyncio.create_task(one(60))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(one(0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    first.cancel()
    await asyncio.sleep(0)  # `waiting[1]` has been woken, and has not run yet.
    waiting[1].cancel()
    await asyncio.wait({first, *waiting}, timeout=10)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    async with places.one_async(end_after(10)):
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            async with places.one_async(end_after(0.01)):
                pass


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
async def test_a_time_that_is_over_gives_no_place(timeout: float) -> None:
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED), Places(1).one(end_after(timeout)):
        pass
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        async with Places(1).one_async(end_after(timeout)):
            pass


def test_threads_that_wait_are_refused_when_all_is_closed() -> None:
    places, errors = Places(1), []

    def wait() -> None:
        try:
            with places.one(None):
                pass
        except ClientError as error:
            errors.append(error.code)

    with places.one(None):
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        places.close()
        for thread in threads:
            thread.join(10)
    wait()
    assert errors == [grpc.StatusCode.CANCELLED] * 4


async def test_tasks_that_wait_are_refused_when_all_is_closed() -> None:
    places = Places(1)
    errors = []

    async def wait() -> None:
        with refused(grpc.StatusCode.CANCELLED):
            async with places.one_async(None):
                pass
        errors.append(True)

    async with places.one_async(None):
        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not errors
        places.close()
        await until(lambda: len(errors) == 3)
    await asyncio.wait(tasks)
    await wait()


def test_nobody_may_ask_for_no_place_at_all() -> None:
    with pytest.raises(ValueError, match="max_calls must be 1 or more, got 0"):
        Places(0)
