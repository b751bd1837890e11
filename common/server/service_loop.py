"""The event loop that services run on: asyncio's own, with one turn for all that gRPC has to tell.

Knows how gRPC wakes an event loop. Does not know what is served. gRPC's thread writes a byte into a socket for each
event, such as a message that is sent, and what reads it there takes one byte and then handles all events that are
there. So the loop, left alone, makes a turn for each further byte, in which nothing is left to do: with many streams
one more for every token.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_AT_ONCE = 4096
"""More bytes than this wait for the next turn: a bound, as a socket holds a few hundred such messages of one byte."""


class ServiceLoop(asyncio.SelectorEventLoop):
    """Calls what reads gRPC's bytes once for each byte that is there, in one turn."""

    knows_grpc = False
    """Whether gRPC's reader has come and was known; where it never is, all works, a little slower."""

    def add_reader(self, fd: "FileDescriptorLike", callback: Callable[[Unpack[Ts]], Any], *args: *Ts) -> None:
        """See `asyncio.AbstractEventLoop`."""
        if isinstance(fd, socket.socket) and fd.family == socket.AF_UNIX and _reads_events(callback):
            self.knows_grpc = True
            super().add_reader(fd, _call_for_each_byte, fd, bytearray(_AT_ONCE), partial(callback, *args))
        else:
            super().add_reader(fd, callback, *args)


def run_service(main: Coroutine[Any, Any, T]) -> T:
    """Run a service as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=ServiceLoop) as runner:
        return runner.run(main)


def _reads_events(callback: Callable[..., Any]) -> bool:
    """Whether it is gRPC's reader. Where gRPC calls it something else by now, its bytes take turns as ever."""
    bound = getattr(callback, "func", callback)
    return type(getattr(bound, "__self__", None)).__name__ == "PollerCompletionQueue"


def _call_for_each_byte(source: socket.socket, place: bytearray, callback: Callable[[], object]) -> None:
    # Where a call takes more than one byte, the last ones find none.
    with suppress(BlockingIOError):
        for _ in range(source.recv_into(place, 0, socket.MSG_PEEK)):
            callback()
