"""Calls against a real server; the expected statuses are read with google.rpc's own messages."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from common.calls.observer import Context
from common.errors import InvalidArgumentError, ResourceExhaustedError
from common.server.config import ServerConfig
from common.server.server import GrpcServer
from diptych.v1 import generation_pb2 as pb
from tests.common.calls.error_info import info_of
from tests.fake_generation import HIDDEN, NAME, FakeGeneration, running


async def tokenize(address: str, request: bytes, *, timeout: float = 10) -> bytes:
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"/{NAME}/Tokenize")
        answer: bytes = await call(request, timeout=timeout)
        return answer


def text(word: str) -> bytes:
    return pb.TokenizeRequest(text=pb.RawText(text=word)).SerializeToString()


@pytest.mark.parametrize("word", ["bug", "stray"])
async def test_a_bug_is_internal_without_its_text_and_with_an_id_that_is_in_the_log(
    word: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(FakeGeneration()) as (_, address):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await tokenize(address, text(word))
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert HIDDEN not in repr(raised.value)
    record = next(record for record in caplog.records if record.exc_info)
    assert vars(record)["error_id"] == info_of(raised.value).metadata["error_id"]
    assert vars(record)["method"] == f"/{NAME}/Tokenize"


async def test_an_internal_error_of_ours_keeps_its_reason_and_gets_an_id() -> None:
    async with running(FakeGeneration()) as (_, address):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await tokenize(address, text("InternalError"))
    info = info_of(raised.value)
    assert info.reason == "SOME_REASON"
    assert set(info.metadata) == {"error_id", "limit", "got"}


async def test_bytes_that_are_no_message_are_refused_without_the_parsers_words() -> None:
    async with running(FakeGeneration()) as (_, address):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await tokenize(address, b"\xff\xff\xff")
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(raised.value).reason == "MALFORMED_REQUEST"
    assert "pars" not in repr(raised.value).lower()


async def test_a_call_that_brings_no_message_is_told_so() -> None:
    async with running(FakeGeneration()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_unary(f"/{NAME}/Tokenize")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(iter(()), timeout=10)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "The call brought no message."


async def test_an_unknown_method_is_unimplemented_and_not_counted() -> None:
    registry = CollectorRegistry()
    async with (
        running(FakeGeneration(), registry=registry) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary(f"/{NAME}/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"")
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert not [metric for metric in registry.collect() if metric.samples and metric.name.startswith("grpc")]


async def test_calls_are_counted_by_status() -> None:
    registry = CollectorRegistry()
    labels = {"grpc_service": NAME, "grpc_method": "Tokenize"}
    async with running(FakeGeneration(), registry=registry) as (_, address):
        await tokenize(address, text("fine"))
        for word in ("InvalidArgumentError", "bug"):
            with pytest.raises(grpc.aio.AioRpcError):
                await tokenize(address, text(word))
        waiting = asyncio.create_task(tokenize(address, text("forever"), timeout=0.3))
        await asyncio.sleep(0.15)
        assert registry.get_sample_value("grpc_server_in_flight", labels) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting
        await asyncio.sleep(0.1)
    handled = {
        code: registry.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": code})
        for code in ("OK", "INVALID_ARGUMENT", "INTERNAL", "DEADLINE_EXCEEDED", "UNKNOWN", "CANCELLED")
    }
    assert handled == {
        "OK": 1, "INVALID_ARGUMENT": 1, "INTERNAL": 1, "DEADLINE_EXCEEDED": 1, "UNKNOWN": 0, "CANCELLED": None,
    }  # fmt: skip
    errors = {
        reason: registry.get_sample_value("diptych_call_errors_total", {"reason": reason})
        for reason in ("SOME_REASON", "INTERNAL")
    }
    assert errors == {"SOME_REASON": 1, "INTERNAL": 1}
    assert registry.get_sample_value("grpc_server_started_total", labels) == 4
    assert registry.get_sample_value("grpc_server_in_flight", labels) == 0


async def echo(request: bytes, context: Context) -> bytes:
    return _judged(request)


async def repeat(request: bytes, context: Context) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield _judged(request)


async def write(request: bytes, context: Context) -> None:
    for _ in range(3):
        await context.write(_judged(request))


async def join(requests: AsyncIterator[bytes], context: Context) -> bytes:
    return b"".join([_judged(request) async for request in requests])


async def relay(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    # All are received first: a status that comes while the caller still sends may reach it as a broken stream.
    for request in [each async for each in requests]:
        yield _judged(request)


def _judged(request: bytes) -> bytes:
    if request == b"wrong":
        raise InvalidArgumentError("WRONG", "Wrong.")
    if request == b"bug":
        raise RuntimeError(HIDDEN)
    return request


CASES: dict[str, tuple[str, Callable[..., Any], list[bytes]]] = {
    "Echo": ("unary_unary", echo, [b"a"]),
    "Repeat": ("unary_stream", repeat, [b"a", b"a", b"a"]),
    "Write": ("unary_stream", write, [b"a", b"a", b"a"]),
    "Join": ("stream_unary", join, [b"aa"]),
    "Relay": ("stream_stream", relay, [b"a", b"a"]),
}


async def call_case(name: str, request: bytes) -> list[bytes]:
    kind, behaviour, _ = CASES[name]
    server = GrpcServer(ServerConfig(port=0, grace_seconds=0.0), registry=CollectorRegistry())
    handler = getattr(grpc, f"{kind}_rpc_method_handler")(behaviour)
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {name: handler}),))
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: Any = getattr(channel, kind)(f"/test.Service/{name}")
            argument = [request, request] if kind.startswith("stream") else request
            call = method(iter(argument) if isinstance(argument, list) else argument, timeout=10)
            return [answer async for answer in call] if kind.endswith("stream") else [await call]
    finally:
        await server.stop()


@pytest.mark.parametrize("name", CASES)
async def test_every_kind_of_method_answers_as_without_the_interceptor(name: str) -> None:
    assert await call_case(name, b"a") == CASES[name][2]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("request_bytes", "code"), [(b"wrong", "INVALID_ARGUMENT"), (b"bug", "INTERNAL")])
async def test_every_kind_of_method_answers_errors_with_a_status(name: str, request_bytes: bytes, code: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call_case(name, request_bytes)
    assert raised.value.code().name == code
    assert HIDDEN not in repr(raised.value)


async def test_a_stream_whose_caller_left_is_closed_at_once() -> None:
    servicer = FakeGeneration()
    request = pb.GenerateRequest(text=pb.RawText(text="x a b forever")).SerializeToString()
    async with running(servicer) as (_, address), grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_stream(f"/{NAME}/Generate")
        call = method(request)
        await call.read()
        assert servicer.num_open == 1
        call.cancel()
        for _ in range(100):
            if not servicer.num_open:
                break
            await asyncio.sleep(0.01)
        assert servicer.num_open == 0


async def test_who_is_asked_first_refuses_a_call_before_its_request_is_received() -> None:
    """The request never comes: a server that received it first would wait for ever."""
    asked: list[str] = []

    def refuse(path: str) -> None:
        asked.append(path)
        raise ResourceExhaustedError("QUEUE_FULL", "full", retry_after=1.5)

    registry = CollectorRegistry()
    async with running(FakeGeneration(), registry=registry) as (server, address):
        server.ask_first(refuse)
        async with grpc.aio.insecure_channel(address) as channel:
            method: Any = channel.stream_stream(f"/{NAME}/Generate")
            call = method(timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info_of(raised.value).reason == "QUEUE_FULL"
    assert dict(raised.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"
    assert asked == [f"/{NAME}/Generate"]
    labels = {"grpc_service": NAME, "grpc_method": "Generate"}
    assert registry.get_sample_value("grpc_server_in_flight", labels) == 0
