"""This service's hold on the memory that a vision service on the same host shares with it.

Knows the greeting and the mapping. Trusts nothing: the other side must run as the same user, the memory must be sealed
against shrinking, and what lies in it is copied before it is checked. Does not know what features are.
"""

import asyncio
import os
import socket

from common.features.arena_greeting import GREETING, LEASE, is_same_user, socket_address
from common.features.shared_memory import map_arena

_SECONDS = 1.0
_MAX_BYTES = 1 << 36
_MAX_TRIES = 3
"""Tries in a row to get at one name's memory."""


class ArenaGuest:
    """Whoever a replica's memory may be used by; follows what the replica says of it."""

    def __init__(self, *, wants_memory: bool) -> None:
        self.visit: ArenaVisit | None = None
        """None where the memory is not to be had."""
        self._wants_memory = wants_memory
        self._name = ""
        self._tries = 0

    async def meet(self, name: str) -> None:
        """Hear the name of the replica's socket, "" for none; another one than before says that it is a new process.

        Hearing it again is an occasion to connect again, where the connection was lost or did not come about.
        """
        if not self._wants_memory or (name == self._name and not self._should_try_again()):
            return
        tries = self._tries + 1 if name == self._name else 1
        self.leave()
        self._name, self._tries = name, tries
        visit = await ArenaVisit.open(name) if name else None
        if self._name == name:
            self.visit = visit
            self._tries = self._tries if visit is None else 0
        elif visit is not None:
            visit.close()

    def _should_try_again(self) -> bool:
        if self.visit is not None:
            return self.visit.is_over
        return bool(self._name) and self._tries < _MAX_TRIES

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
