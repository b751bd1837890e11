"""Work is done in order, elsewhere, and what it raises is raised where it is waited for."""

import gc
import threading
from functools import partial

import pytest

from decoder_service.model.step_queue import AtOnce, OnThread, StepQueue


@pytest.mark.parametrize("make_queue", [AtOnce, OnThread])
def test_work_is_done_in_order(make_queue: type[AtOnce] | type[OnThread]) -> None:
    queue: StepQueue = make_queue()
    done: list[int] = []
    futures = [queue.put(partial(done.append, number)) for number in range(9)]
    assert [future.result(timeout=20) for future in futures] == [None] * 9
    assert done == list(range(9))


@pytest.mark.parametrize("make_queue", [AtOnce, OnThread])
def test_what_fails_raises_where_it_is_waited_for_and_harms_nobody_behind_it(
    make_queue: type[AtOnce] | type[OnThread],
) -> None:
    queue: StepQueue = make_queue()
    failing, other = queue.put(lambda: 1 // 0), queue.put(lambda: 5)
    with pytest.raises(ZeroDivisionError):
        failing.result(timeout=20)
    assert other.result(timeout=20) == 5


@pytest.mark.parametrize("make_queue", [AtOnce, OnThread])
def test_what_ends_a_thread_reaches_whoever_waits_too(make_queue: type[AtOnce] | type[OnThread]) -> None:
    """As a panic of a library in Rust does, which is no Exception."""

    class Panic(BaseException):
        pass

    def panic() -> None:
        raise Panic

    queue: StepQueue = make_queue()
    failing, other = queue.put(panic), queue.put(lambda: 5)
    with pytest.raises(Panic):
        failing.result(timeout=20)
    assert other.result(timeout=20) == 5


def test_nobody_waits_for_work_that_was_put() -> None:
    """The negative control is the queue that does it at once, on the thread that puts it."""
    gate = threading.Event()
    queue = OnThread()
    waiting = queue.put(lambda: gate.wait(timeout=20))
    assert not waiting.done()
    gate.set()
    assert waiting.result(timeout=20)
    assert queue.put(threading.current_thread).result(timeout=20) is not threading.current_thread()
    assert AtOnce().put(threading.current_thread).result(timeout=20) is threading.current_thread()


def test_its_thread_ends_with_it() -> None:
    queue = OnThread()
    thread = queue.put(threading.current_thread).result(timeout=20)
    assert thread.is_alive()
    del queue
    gc.collect()
    thread.join(timeout=20)
    assert not thread.is_alive()
