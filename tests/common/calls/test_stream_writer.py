"""When a stream's caller has been waited for long enough, on a clock that moves while nobody has anything to do."""

import asyncio
import selectors
from collections.abc import Coroutine
from contextlib import closing
from typing import Any, cast

import pytest

from common.calls.observer import Context
from common.calls.stream_writer import StreamWriter
from common.errors import ResourceExhaustedError

LIMIT = 30.0


class Clock(selectors.SelectSelector):
    """Lets the time pass that nobody would do anything in."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "somebody waits for ever"
        self.now += timeout
        return super().select(0)


class Reader:
    """Takes each message after so many seconds."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = iter(seconds)
        self.taken: list[object] = []

    async def write(self, message: object) -> None:
        await asyncio.sleep(next(self.seconds))
        self.taken.append(message)


def run(main: Coroutine[Any, Any, None]) -> float:
    """Run to the end; the seconds that it took by the clock."""
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)
    return clock.now - Clock.now


async def write_all(reader: Reader, count: int, *, pause: float = 0.0) -> None:
    with closing(StreamWriter(cast(Context, reader), stall_seconds=LIMIT)) as writer:
        for number in range(count):
            await asyncio.sleep(pause)
            await writer.write(number)


@pytest.mark.parametrize("before", [(), (0.0, 0.0), (29.0,), (29.0, 12.0, 29.5)])
@pytest.mark.parametrize("pause", [0.0, 7.0, 100.0])
def test_a_message_is_waited_for_exactly_as_long_whatever_came_before(before: tuple[float, ...], pause: float) -> None:
    reader = Reader(*before, 1e6)

    async def main() -> None:
        with pytest.raises(ResourceExhaustedError, match="30") as raised:
            await write_all(reader, len(before) + 1, pause=pause)
        assert raised.value.reason == "SLOW_CONSUMER"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0, "the call goes on to answer"

    assert run(main()) == pytest.approx(sum(before) + pause * (len(before) + 1) + LIMIT)
    assert reader.taken == list(range(len(before)))


def test_a_caller_that_always_reads_just_in_time_is_never_ended() -> None:
    reader = Reader(*[LIMIT - 0.5] * 20)
    assert run(write_all(reader, 20)) > 10 * LIMIT
    assert len(reader.taken) == 20


def test_a_server_that_has_nothing_to_say_for_long_is_no_slow_caller() -> None:
    reader = Reader(*[0.0] * 3)
    run(write_all(reader, 3, pause=10 * LIMIT))
    assert len(reader.taken) == 3


@pytest.mark.parametrize("after", [LIMIT / 2, LIMIT])
def test_a_cancellation_by_others_stays_one_also_when_time_is_up_as_well(after: float) -> None:
    async def main() -> None:
        task = asyncio.create_task(write_all(Reader(1e6), 1))
        asyncio.get_running_loop().call_later(after, task.cancel)
        await asyncio.wait({task})
        assert task.cancelled()

    run(main())


def test_nothing_is_left_of_a_stream_that_ended() -> None:
    async def main() -> None:
        await write_all(Reader(0.0), 1)
        await asyncio.sleep(10 * LIMIT)  # A timer that is left would cancel this.

    run(main())
