"""The loop of a service: what gRPC has to tell is heard in one turn, and nothing of it is lost."""

import asyncio
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from common.server import service_loop
from common.server.config import ServerConfig
from common.server.health import HealthServicer
from common.server.server import GrpcServer
from common.server.service_loop import ServiceLoop, run_service


class PollerCompletionQueue:
    """Reads as gRPC's class of this name does: `take` bytes a call, and there must be one."""

    def __init__(self, source: socket.socket, *, take: int = 1) -> None:
        self._source = source
        self._take = take
        self.taken: list[bytes] = []

    def handle_events(self, loop: asyncio.AbstractEventLoop) -> None:
        self.taken.append(self._source.recv(self._take))


class SomebodyElse(PollerCompletionQueue):
    """Somebody else who reads from a socket."""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What is written to the second comes out of the first, which does not block."""
    source, target = socket.socketpair()
    source.setblocking(False)
    with source, target:
        yield source, target


def after_one_turn(
    reader: PollerCompletionQueue, ends: tuple[socket.socket, socket.socket], *, bound: bool = False
) -> list[bytes]:
    """What one turn of the loop has read where five bytes came before it."""
    source, target = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors: list[dict[str, object]] = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        if bound:
            loop.add_reader(source, reader.handle_events, loop)
        else:
            loop.add_reader(source, partial(reader.handle_events, loop))
        target.send(b"12345")
        await asyncio.sleep(0)
        # The turn that ends the first sleep runs the reader behind it, and the next one ends this.
        await asyncio.sleep(0)
        loop.remove_reader(source)
        assert errors == []

    run_service(main())
    return reader.taken


@pytest.mark.parametrize("bound", [False, True])
def test_grpcs_reader_is_called_for_all_bytes_in_one_turn(
    ends: tuple[socket.socket, socket.socket], bound: bool
) -> None:
    assert after_one_turn(PollerCompletionQueue(ends[0]), ends, bound=bound) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_reader_that_takes_all_at_once_is_not_harmed(ends: tuple[socket.socket, socket.socket]) -> None:
    assert after_one_turn(PollerCompletionQueue(ends[0], take=9), ends) == [b"12345"]


def test_others_read_once_a_turn(ends: tuple[socket.socket, socket.socket]) -> None:
    assert after_one_turn(SomebodyElse(ends[0]), ends) == [b"1"]


def test_grpcs_own_reader_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, known = [], []
    real = service_loop._call_for_each_byte

    def call(*arguments: object) -> None:
        calls.append(arguments)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(service_loop, "_call_for_each_byte", call)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ServiceLoop)
        known.append(loop.knows_grpc)
        server = grpc.aio.server()
        known.append(loop.knows_grpc)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs do not know its methods
            await stub.Check(health_pb2.HealthCheckRequest())
        await server.stop(None)

    run_service(main())
    assert known == [False, True]
    assert calls


def test_an_error_comes_out_and_the_loop_is_closed() -> None:
    loops = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        raise LookupError

    with pytest.raises(LookupError):
        run_service(main())
    assert loops[0].is_closed()


@pytest.mark.parametrize("name", ["PollerCompletionQueue", "SomethingElse"])
def test_a_server_tells_where_grpcs_reader_is_not_known(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_known = name == "PollerCompletionQueue"
    if not is_known:
        monkeypatch.setattr(service_loop, "_reads_events", lambda callback: False)

    async def main() -> None:
        server = GrpcServer(ServerConfig(port=0, metrics_port=None), registry=CollectorRegistry())
        await server.start()
        await server.grpc.stop(None)

    run_service(main())
    assert ("each takes a turn of the loop" in caplog.text) is not is_known
