"""Sees to it that work that comes in small pieces from many sides does not stop an event loop together.

Knows the event loop. Does not know what the work is.
"""

import asyncio
from collections import deque


class LoopTurns:
    """Lets one piece of work be done in each turn of the event loop, first come first served."""

    def __init__(self) -> None:
        self._is_taken = False
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
