"""A server among callers who speak HTTP/2 as they should not, by hand, since gRPC's own client would not."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, ResponseReceived, TrailersReceived

from common.client.client import AsyncDiptychClient
from common.client.messages import raw_text
from common.client.types import to_client_error
from diptych.v1 import generation_pb2 as pb
from diptych.v1 import generation_pb2_grpc
from tests.fake_generation import NAME, FakeGeneration, running

GENERATE = f"/{NAME}/Generate"
BODY = pb.GenerateRequest(text=pb.RawText(text="x forever")).SerializeToString()


class RawCaller:
    """One HTTP/2 connection, spoken by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._state = H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        )
        self._state.initiate_connection()
        self._next = 1
        self.events: list[Event] = []
        self.is_closed = False

    def open(self, path: str = GENERATE, *extra: tuple[str, str], body: bytes | None = BODY) -> int:
        """Begin a call; returns its stream."""
        stream, self._next = self._next, self._next + 2
        headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")),
            *(("te", "trailers"), ("content-type", "application/grpc"), *extra),
        ]
        self._state.send_headers(stream, headers)
        if body is not None:
            self._state.send_data(stream, b"\0" + len(body).to_bytes(4, "big") + body, end_stream=True)
        return stream

    def reset(self, stream: int) -> None:
        """Take a call back."""
        self._state.reset_stream(stream)

    def ping(self) -> None:
        """Ask whether anybody is there."""
        self._state.ping(b"01234567")

    async def send(self) -> None:
        """Send what was said so far; a connection that the server closed is none to write to."""
        with suppress(OSError):
            self._writer.write(self._state.data_to_send())
            await self._writer.drain()

    async def listen(self, seconds: float) -> None:
        """Hear what comes within a time."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                while not self.is_closed:
                    data = await self._reader.read(65536)
                    self.is_closed = not data
                    self.events += self._state.receive_data(data) if data else []
                    await self.send()

    def heard(self, kind: type[Any], stream: int | None = None) -> list[Any]:
        """Events of a kind, of one stream where it is given."""
        of_kind = [event for event in self.events if isinstance(event, kind)]
        return [event for event in of_kind if stream is None or event.stream_id == stream]


@asynccontextmanager
async def raw_caller(address: str) -> AsyncIterator[RawCaller]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield RawCaller(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def grpc_status(caller: RawCaller, stream: int) -> str | None:
    """The status that a call ended with; None where it was reset or never answered."""
    events = caller.heard(TrailersReceived, stream) or caller.heard(ResponseReceived, stream)
    return dict(events[-1].headers).get("grpc-status") if events else None


async def others_are_served(address: str) -> None:
    """Somebody else's call, on a connection of its own, works as ever."""
    async with AsyncDiptychClient(address) as client:
        assert (await client.complete(raw_text("x a b"), timeout=10)).text == "a b "


async def wait_for_nobody(servicer: FakeGeneration) -> None:
    async with asyncio.timeout(10):
        while servicer.num_open:
            await asyncio.sleep(0.01)


def num_descriptors() -> int:
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))


async def test_a_plain_call_by_hand_is_answered() -> None:
    """The negative control: what is refused below is not refused because it is spoken by hand."""
    async with running(FakeGeneration()) as (_, address), raw_caller(address) as caller:
        stream = caller.open(f"/{NAME}/GetModelInfo", body=b"")
        await caller.send()
        await caller.listen(1)
    assert grpc_status(caller, stream) == "0"


@pytest.mark.parametrize(("num_headers", "bytes_each"), [(1, 20_000), (16, 4000), (100, 4000)])
async def test_headers_over_the_limit_are_refused_and_others_are_served(num_headers: int, bytes_each: int) -> None:
    """Also where no frame of them is over it, which gRPC itself lets pass."""
    async with running(FakeGeneration()) as (_, address), raw_caller(address) as caller:
        headers = ((f"x-{index}", "y" * bytes_each) for index in range(num_headers))
        stream = caller.open(f"/{NAME}/GetModelInfo", *headers, body=b"")
        await caller.send()
        await caller.listen(1)
        assert grpc_status(caller, stream) == "3"
        await others_are_served(address)


async def test_what_is_too_large_for_grpc_itself_is_resource_exhausted_without_details() -> None:
    """As the contract says: whoever sends headers in one frame, as gRPC's own clients do, or too large a message."""
    servicer, headers = FakeGeneration(), (("x", "y" * 20_000),)
    async with running(servicer, max_message_bytes=2000) as (_, address), grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = pb.TokenizeRequest(text=pb.RawText(text="y" * 3000))
        for call in (stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=headers), stub.Tokenize(request)):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert to_client_error(raised.value).reason == ""


@pytest.mark.parametrize("value", ["!!!not base64!!!", "\x00\x01"])
async def test_a_broken_binary_header_hurts_nobody_else(value: str) -> None:
    async with running(FakeGeneration()) as (_, address), raw_caller(address) as caller:
        caller.open(f"/{NAME}/GetModelInfo", ("x-bin", value), body=b"")
        await caller.send()
        await caller.listen(0.5)
        await others_are_served(address)


async def test_a_connection_gets_no_more_calls_than_the_limit() -> None:
    servicer = FakeGeneration()
    async with running(servicer, max_concurrent_streams=20) as (_, address), raw_caller(address) as caller:
        for _ in range(500):
            caller.open()
        await caller.send()
        await caller.listen(1.5)
        assert servicer.num_open <= 20
        await others_are_served(address)
    await wait_for_nobody(servicer)


async def test_calls_that_are_taken_back_at_once_leave_nothing_behind() -> None:
    """Rapid reset, CVE-2023-44487."""
    servicer = FakeGeneration()
    async with running(servicer) as (_, address):
        before = num_descriptors()
        async with raw_caller(address) as caller:
            started = time.monotonic()
            for _ in range(100):
                for _ in range(20):
                    caller.reset(caller.open())
                await caller.send()
                await caller.listen(0.001)
                if caller.is_closed:
                    break
            await others_are_served(address)
            assert time.monotonic() - started < 60
        await wait_for_nobody(servicer)
        await others_are_served(address)
        assert num_descriptors() <= before + 2


async def test_who_pings_without_end_is_cut_off() -> None:
    async with running(FakeGeneration()) as (_, address), raw_caller(address) as caller:
        for _ in range(200):
            caller.ping()
        await caller.send()
        await caller.listen(5)
        (goodbye, *_) = caller.heard(ConnectionTerminated)
        assert goodbye.additional_data == b"too_many_pings"
        await others_are_served(address)


async def test_connections_over_the_limit_are_closed_and_all_descriptors_come_back() -> None:
    async with running(FakeGeneration(), max_connections=30) as (_, address):
        host, port = address.split(":")
        before = num_descriptors()
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(120)]
        await asyncio.sleep(1)
        # Two descriptors for each that both sides hold, one for each that the server has closed.
        assert num_descriptors() - before <= 120 + 30 + 5
        for _, writer in opened:
            writer.close()
        async with asyncio.timeout(10):
            while num_descriptors() > before + 2:
                await asyncio.sleep(0.05)
        await others_are_served(address)


async def test_an_unknown_method_and_a_nested_message_get_their_statuses() -> None:
    nested = b"\x0b" * 500  # groups within groups
    async with running(FakeGeneration()) as (_, address), raw_caller(address) as caller:
        unknown = caller.open("/diptych.v1.GenerationService/Nothing", body=b"")
        deep = caller.open(f"/{NAME}/Tokenize", body=nested)
        await caller.send()
        await caller.listen(1)
        assert (grpc_status(caller, unknown), grpc_status(caller, deep)) == ("12", "3")
        await others_are_served(address)


async def test_a_small_message_that_unpacks_to_a_large_one_is_refused() -> None:
    request = pb.TokenizeRequest(text=pb.RawText(text="x" * 10_000_000)).SerializeToString()
    async with (
        running(FakeGeneration(), max_message_bytes=1 << 20) as (_, address),
        grpc.aio.insecure_channel(address, compression=grpc.Compression.Gzip) as channel,
    ):
        call: Any = channel.unary_unary(f"/{NAME}/Tokenize")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request, timeout=10)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await others_are_served(address)
