"""A name is one open request's, and free again when that has ended."""

import asyncio

import pytest

from common.errors import AbortedError, AlreadyExistsError
from decoder_service.engine.request_names import RequestNames


def test_a_request_sent_twice_is_told_from_another_of_its_name() -> None:
    names = RequestNames()
    with names.held("a", b"1"):
        with pytest.raises(AbortedError), names.held("a", b"1"):
            pass
        with pytest.raises(AlreadyExistsError), names.held("a", b"2"):
            pass
        with names.held("someone/a", b"2"):
            assert len(names) == 2
    with names.held("a", b"2"):
        assert len(names) == 1
    assert len(names) == 0


def test_a_name_is_free_when_its_request_failed() -> None:
    names = RequestNames()
    with pytest.raises(RuntimeError), names.held("a", b"1"):
        raise RuntimeError
    assert len(names) == 0


async def test_a_name_can_be_waited_for_once_the_call_of_its_request_is_over() -> None:
    names = RequestNames()
    with names.held("a", b"1"):
        await asyncio.wait_for(names.left("a"), 5)
        names.leave("a")
        waiting = asyncio.create_task(names.left("a"))
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)
    names.leave("a")
    await asyncio.wait_for(names.left("a"), 5)
