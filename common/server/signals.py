"""The signals by which a process is told to end.

Knows the event loop. Does not know what ends.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


def leave_when_told() -> None:
    """End this process at a SIGTERM or SIGINT, at once and with the status that shells know, until others hear them.

    For a service that still loads. The first process of a container would ignore SIGTERM, as the kernel does nothing
    by itself to a process whose id is 1; SIGINT would come out of whatever is being loaded, with a traceback.
    """
    for number in _NUMBERS:
        signal.signal(number, lambda number, _: os._exit(128 + number))


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
