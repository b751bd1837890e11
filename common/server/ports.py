"""Addresses to listen on, and whether they are free.

Knows sockets. Does not know what listens.
"""

import errno
import socket
from typing import Final

LAST_PORT: Final = 65535


class CannotListenError(Exception):
    """Nobody can listen at an address; the message is one line."""


def check_free(host: str, port: int, *, purpose: str = "") -> None:
    """Raise CannotListenError where nobody can listen there now; port 0 is always free.

    `purpose` is the first word of the setting that names the port, where it has more than one. Tried with a plain
    socket: gRPC would explain a failure in several lines of its own, and after the model was loaded.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        other = f"choose another with --{purpose and f'{purpose}-'}port"
        reasons = {
            errno.EADDRINUSE: f"the port is in use; {other}",
            errno.EACCES: f"the port is not ours to take; {other}",
        }
        reason = reasons.get(error.errno or 0, "--host is no address of this machine")
        raise CannotListenError(
            f"cannot listen on {address(host, port)}{purpose and f' for {purpose}'}: {reason}"
        ) from None


def address(host: str, port: int) -> str:
    """HOST:PORT, with the host in brackets where it has colons itself."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
