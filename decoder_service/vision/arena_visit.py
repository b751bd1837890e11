"""This service's hold on the memory that a vision service on the same host shares with it.

Knows the greeting and the mapping. Trusts nothing: the other side must run as the same user, the memory must be sealed
against shrinking, and what lies in it is copied before it is checked. Does not know what features are.
"""

import asyncio
import os
import socket

from common.arena_greeting import GREETING, LEASE, is_same_user, socket_address
from common.shared_memory import map_arena

_SECONDS = 1.0
_MAX_BYTES = 1 << 36


class ArenaGuest:
    """Whoever a replica's memory may be used by; follows what the replica says of it."""

    def __init__(self, *, wants_memory: bool) -> None:
        self.visit: ArenaVisit | None = None
        """None where the memory is not to be had."""
        self._wants_memory = wants_memory
        self._name = ""

    async def meet(self, name: str) -> None:
        """Hear the name of the replica's socket, "" for none; another one than before says that it is a new process."""
        if name == self._name or not self._wants_memory:
            return
        self.leave()
        self._name = name
        visit = await ArenaVisit.open(name) if name else None
        if self._name == name:
            self.visit = visit
        elif visit is not None:
            visit.close()

    def leave(self) -> None:
        """Let go, until a name is heard again."""
        if self.visit is not None:
            self.visit.close()
        self.visit, self._name = None, ""


class ArenaVisit:
    """A connection, a token and a mapping; made by `open`."""

    def __init__(self, connection: socket.socket, token: bytes, memory: memoryview) -> None:
        self.token = token
        """What makes the vision service know us."""
        self.memory = memory
        """All of the shared memory, to read."""
        self._connection = connection

    @classmethod
    async def open(cls, name: str) -> "ArenaVisit | None":
        """Connect, within a second; None where the memory is not to be had from here, whatever the reason."""
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except (AttributeError, OSError):
            return None
        try:
            async with asyncio.timeout(_SECONDS):
                await asyncio.get_running_loop().sock_connect(connection, socket_address(name))
                if not is_same_user(connection):
                    raise ValueError("the shared memory is another user's")
                await _readable(connection)
            return cls(connection, *_receive(connection))
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError | ValueError):
                raise
            return None

    def release(self, lease: int) -> None:
        """Say that the bytes of a lease were copied."""
        try:
            self._connection.send(LEASE.pack(lease))
        except OSError:
            # Who does not hear that we are done must hear that we are gone.
            self.close()

    def close(self) -> None:
        """Leave. The mapping goes with its last user."""
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
        return token, map_arena(descriptors[0], size=size)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
