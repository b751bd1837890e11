"""The signals by which a process is told to end.

Knows the event loop. Does not know what ends.
"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def termination_signals() -> Iterator[asyncio.Queue[int]]:
    """The SIGTERMs and SIGINTs that arrive while inside."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[int] = asyncio.Queue()
    for number in _NUMBERS:
        loop.add_signal_handler(number, arrived.put_nowait, number)
    try:
        yield arrived
    finally:
        for number in _NUMBERS:
            loop.remove_signal_handler(number)
