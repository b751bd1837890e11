"""Work that outlives its call."""

import asyncio
import logging

import pytest

from decoder_service.api.aftermath import Aftermath


async def test_all_is_waited_for_also_what_is_added_meanwhile() -> None:
    aftermath, first, second = Aftermath(), asyncio.Event(), asyncio.Event()

    async def wait_for(event: asyncio.Event) -> None:
        await event.wait()

    async def work() -> None:
        await first.wait()
        aftermath.add(wait_for(second))

    aftermath.add(work())
    settled = asyncio.create_task(aftermath.settled())
    for event in (first, second):
        await asyncio.sleep(0.01)
        assert not settled.done()
        event.set()
    await asyncio.wait_for(settled, 5)
    assert len(aftermath) == 0


async def test_what_fails_is_logged_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("planted")

    aftermath = Aftermath()
    with caplog.at_level(logging.ERROR):
        aftermath.add(fail())
        await asyncio.wait_for(aftermath.settled(), 5)
    assert [record.message for record in caplog.records] == ["a request's end failed"]
