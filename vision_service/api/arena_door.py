"""Hands shared memory to decoder services on this host, and gives them regions of it for features.

Knows the greeting, who is connected, and which leases are open. Does not know what features are. A lease ends when its
call does; until then its bytes stay, and the call waits until the reader has said that it is done or is gone.
"""

import asyncio
import errno
import itertools
import logging
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from common.features.arena_greeting import GREETING, LEASE, is_same_user, new_name, socket_address
from common.features.shared_memory import Region, SharedArena
from diptych.v1 import vision_pb2

_log = logging.getLogger(__name__)
_MAX_READERS = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""The process or the system has no descriptor or memory for a connection just now."""
_DEAF_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class SharedLease:
    """A region for one image's features, on its way to one reader."""

    number: int
    region: Region
    arena: SharedArena
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the reader has copied all, or is gone."""

    def to_wire(self) -> vision_pb2.SharedRegion:
        """What the header of the stream says of it."""
        return vision_pb2.SharedRegion(offset=self.region.offset, size=self.region.size, lease=self.number)

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes at a place in the region."""
        self.arena.write(self.region, offset, data)


_Leases = dict[int, SharedLease]
"""Those of one reader, by number."""


class ArenaDoor:
    """Shares `arena` with every process of this user that connects."""

    def __init__(self, arena: SharedArena) -> None:
        self.name = new_name()
        """Where to connect."""
        self._arena = arena
        self._numbers = itertools.count(1)
        self._readers: dict[bytes, _Leases] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    @property
    def bytes_taken(self) -> int:
        """Bytes of features that are on their way through the arena."""
        return self._arena.bytes_taken

    def start(self) -> None:
        """Let readers connect. Raises OSError."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(socket_address(self.name))
        self._listener.listen(_MAX_READERS)
        self._listen()

    async def close(self) -> None:
        """Let go of all readers and of the memory."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._arena.close()

    @contextmanager
    def lease(self, token: bytes, num_bytes: int) -> Iterator[SharedLease | None]:
        """A region while inside; None for a stranger, or where there is no room now."""
        leases = self._readers.get(token)
        region = self._arena.take(num_bytes) if leases is not None else None
        if leases is None or region is None:
            yield None
            return
        lease = SharedLease(next(self._numbers), region, self._arena)
        leases[lease.number] = lease
        try:
            yield lease
        finally:
            leases.pop(lease.number, None)
            self._arena.give(region)

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """Let one reader in."""
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                # Whoever knocks goes on knocking, and the event loop would do nothing but hear it.
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_DEAF_SECONDS, self._listen)
            return
        connection.setblocking(False)
        if len(self._readers) >= _MAX_READERS or not is_same_user(connection):
            _log.warning("a reader of shared memory was turned away")
            connection.close()
            return
        task = asyncio.create_task(self._serve(connection), name="arena door")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Closed here: a task that is cancelled before it begins closes nothing.
        task.add_done_callback(partial(_close, connection))

    async def _serve(self, connection: socket.socket) -> None:
        """One reader, until it leaves."""
        loop, token, leases = asyncio.get_running_loop(), secrets.token_bytes(16), _Leases()
        with suppress(OSError):
            socket.send_fds(connection, [GREETING.pack(token, self._arena.size)], [self._arena.fd])
            self._readers[token] = leases
            try:
                rest = b""
                while data := await loop.sock_recv(connection, 512):
                    rest = _hear(leases, rest + data)
            finally:
                del self._readers[token]
                for lease in leases.values():
                    lease.done.set()


def _hear(leases: _Leases, data: bytes) -> bytes:
    """Note which leases were read; returns what is left of the data."""
    whole = len(data) // LEASE.size * LEASE.size
    for (number,) in LEASE.iter_unpack(data[:whole]):
        if number in leases:
            leases[number].done.set()
    return data[whole:]


def _close(connection: socket.socket, task: asyncio.Task[None]) -> None:
    connection.close()
