"""Where the work of steps is put, to be done in order.

Knows threads. Does not know what the work is. CUDA is such a queue itself: work that is begun at once only gives the
device something to do. A CPU has none, so there a thread of its own may do the work.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

Result = TypeVar("Result")

SECONDS_TO_END = 1.0
"""What a thread is waited for that has no more work; one that hangs ends with the process."""


class StepQueue(Protocol):
    """Does what it is given, one after another."""

    def put(self, work: Callable[[], Result]) -> "Future[Result]":
        """Do work behind all that was put before; what it raises, `Future.result` raises."""
        ...


class AtOnce:
    """Does the work before `put` returns."""

    def put(self, work: Callable[[], Result]) -> "Future[Result]":
        """See `StepQueue`."""
        future: Future[Result] = Future()
        _do(work, future)
        return future


class OnThread:
    """Has a thread do the work; it ends with the queue."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # The thread knows the queue alone, or it would keep this object alive. A daemon, as work may hang.
        thread = threading.Thread(target=_run, args=(self._work,), name="steps", daemon=True)
        thread.start()
        weakref.finalize(self, _end, self._work, thread)

    def put(self, work: Callable[[], Result]) -> "Future[Result]":
        """See `StepQueue`."""
        future: Future[Result] = Future()
        self._work.put(lambda: _do(work, future))
        return future


def _run(work: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (each := work.get()) is not None:
        each()
        del each  # Its tensors are not to live until the next work comes.


def _end(work: "queue.SimpleQueue[Callable[[], None] | None]", thread: threading.Thread) -> None:
    work.put(None)
    if thread is not threading.current_thread():
        # The interpreter does not end well while a thread is about to take up its work again.
        thread.join(timeout=SECONDS_TO_END)


def _do(work: Callable[[], Result], future: "Future[Result]") -> None:
    try:
        result = work()
    except BaseException as error:  # A panic of a library in Rust is no Exception, and nobody may wait for ever.
        future.set_exception(error)
    else:
        future.set_result(result)
