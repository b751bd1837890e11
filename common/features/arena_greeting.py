"""What is said over the socket through which shared memory is handed over; both services import it.

    vision service listens at an abstract socket, whose name the handshake over gRPC tells
    decoder service connects         --> both look who the other is: only the same user will do
    vision service sends             --> descriptor, token, size
    decoder service sends, later     --> numbers of leases that it has read
    either one closes, or dies       --> the token is void

An abstract socket has no file that could be left behind, and is seen only in its own network namespace: who can connect
is on the same host, and the kernel says as which user.
"""

import os
import re
import secrets
import socket
import struct

GREETING = struct.Struct("<16sQ")
"""The token that a decoder service shows with each request, and the size of the memory in bytes."""
LEASE = struct.Struct("<Q")
"""Number of a lease that was read."""
_CREDENTIALS = struct.Struct("3i")
_NAME = re.compile(r"diptych-[0-9a-f]{32}")


def new_name() -> str:
    """A name that nobody can guess."""
    return f"diptych-{secrets.token_hex(16)}"


def socket_address(name: str) -> str:
    """The address of a name. Raises ValueError for what is no such name."""
    if not _NAME.fullmatch(name):
        raise ValueError("the name of the shared memory's socket is malformed")
    return "\0" + name


def is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as the same user as this one."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())
