"""One connection to the memory that a vision service on the same host shares with this one.

Knows the greeting and the mapping. Does not know when to connect (see `arena_guest`). Trusts nothing: the other side
must run as the same user, the memory must be sealed against shrinking, and what lies in it is copied before it is
checked.
"""

import asyncio
import os
import socket

from common.features.arena_greeting import GREETING, LEASE, is_same_user, socket_address
from common.features.feature_memory import give_back, lend
from common.features.shared_memory import map_arena

_SECONDS = 1.0
_MAX_BYTES = 1 << 36


class ArenaVisit:
    """A connection, a token and a mapping; made by `open`."""

    def __init__(self, connection: socket.socket, token: bytes, memory: memoryview) -> None:
        self.token = token
        """What makes the vision service know us."""
        self.memory = memory
        """All of the shared memory, to read."""
        self._connection = connection

    @classmethod
    async def open(cls, name: str) -> "ArenaVisit":
        """Connect, within a second. Raises OSError or ValueError where the memory is not to be had from here."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(_SECONDS):
                await asyncio.get_running_loop().sock_connect(connection, socket_address(name))
                if not is_same_user(connection):
                    raise ValueError("the shared memory is another user's")
                await _readable(connection)
            return cls(connection, *_receive(connection))
        except BaseException:
            connection.close()
            raise

    @property
    def is_over(self) -> bool:
        """Whether either side has closed the connection, so that the token is void."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def release(self, lease: int) -> None:
        """Say that the bytes of a lease were copied."""
        try:
            self._connection.send(LEASE.pack(lease))
        except OSError:
            # Who does not hear that we are done must hear that we are gone.
            self.close()

    def close(self) -> None:
        """Leave. The mapping goes with its last user, on a thread: for 300 MB that takes 12 to 24 ms."""
        self._connection.close()


async def _readable(connection: socket.socket) -> None:
    """Wait until something is there to be received."""
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(connection)


def _receive(connection: socket.socket) -> tuple[bytes, memoryview]:
    """The token and the mapping. Raises OSError or ValueError."""
    message, descriptors, _, _ = socket.recv_fds(connection, GREETING.size, 1)
    try:
        if len(message) != GREETING.size or len(descriptors) != 1:
            raise ValueError("the greeting is malformed")
        token, size = GREETING.unpack(message)
        if size > _MAX_BYTES:
            raise ValueError("the shared memory is too large")
        return token, lend(map_arena(descriptors[0], size=size), then=give_back)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
