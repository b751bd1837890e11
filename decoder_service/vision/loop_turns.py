"""Sees to it that work that comes in small pieces from many sides does not stop an event loop together.

Knows the event loop. Does not know what the work is.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Generator
from contextlib import suppress
from types import coroutine
from typing import Any, TypeVar

from common.tasks import has_succeeded

T = TypeVar("T")


class LoopTurns:
    """Lets one piece of work be done in each turn of the event loop, first come first served."""

    def __init__(self) -> None:
        """Have nobody waiting."""
        self._is_taken = False
        """The last turn of the loop that is known of."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return in a turn of the loop in which nobody else has returned from here."""
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._rest)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    @coroutine
    def go_on(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """What `work` returns, which goes on in such a turn whenever it has waited.

        Where the caller is cancelled before its turn, `work` first takes what has come: gRPC would keep that for ever.
        """
        try:
            waited = work.send(None)
            while True:
                try:
                    yield waited
                    yield from self.take().__await__()
                except BaseException as error:
                    if _has_come(waited):
                        with suppress(Exception):  # StopIteration is one
                            work.send(None)
                        raise
                    waited = work.throw(error)
                else:
                    waited = work.send(None)
        except StopIteration as end:
            found: T = end.value
            return found
        finally:
            work.close()

    def _pass_on(self) -> None:
        """Somebody has worked in this turn of the loop."""
        if not self._wake():
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        """Nobody has worked in this turn yet."""
        if not self._wake():
            self._is_taken = False

    def _wake(self) -> bool:
        """Let the next one go on in the next turn of the loop, and its successor in the one after that."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._pass_on)
                return True
        return False


def _has_come(waited: "asyncio.Future[object] | None") -> bool:
    return waited is not None and has_succeeded(waited)
