"""Calls into the engine that somebody on the event loop waits for.

Knows futures. Does not know what is called.
"""

import asyncio

from common.errors import DiptychError, UnavailableError


class EngineCalls:
    """Those that were not answered yet; lives on the event loop."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Future[None]] = set()

    def begin(self) -> "asyncio.Future[None]":
        """A call that waits until it is settled."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls.add(done)
        done.add_done_callback(self._calls.discard)
        return done

    def fail(self) -> None:
        """Answer the calls that nobody will run any more."""
        for done in list(self._calls):
            settle(done, stopped())


def settle(done: "asyncio.Future[None]", error: DiptychError | None) -> None:
    """Answer a call, unless it was given up."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def stopped() -> UnavailableError:
    """What callers hear once the engine runs no more."""
    return UnavailableError("ENGINE_STOPPED", "this replica no longer runs the model")
