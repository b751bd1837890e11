"""A port for a process that is about to be started and has to be told one.

Knows which ports the system gives out by itself. Does not know what will listen.
"""

import random
import socket

_FIRST, _LAST = 15_000, 30_000
"""Below the ports that Linux gives to whoever asks for any, so that nobody else gets one before it is listened at."""


def free_port() -> int:
    """A port of this host that is free now."""
    while True:
        port = random.randrange(_FIRST, _LAST)  # noqa: S311 - no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
