import asyncio
import signal
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client import CollectorRegistry

from common.client.client import AsyncDiptychClient, DiptychClient
from common.client.messages import raw_text
from common.client.types import ClientError
from common.server.config import ServerConfig
from common.server.ports import CannotListenError
from common.server.server import GrpcServer
from diptych.v1 import generation_pb2 as pb
from tests.fake_generation import NAME, FakeGeneration, running

STATUS = health_pb2.HealthCheckResponse.ServingStatus
SCRIPT = (
    "import sys; from common.server.start import run_named; from tests.fake_generation import serve; "
    "sys.exit(run_named(serve(port={port}, grace_seconds={grace}), name='fake'))"
)


@contextmanager
def server_process(*, port: int = 0, grace: float = 10.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address as it told it."""
    command = [sys.executable, "-c", SCRIPT.format(port=port, grace=grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().removeprefix("listening ").strip()
        finally:
            process.kill()


def stub(channel: Any) -> Any:  # noqa: ANN401
    return health_pb2_grpc.HealthStub(channel)


async def check(address: str, name: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await stub(channel).Check(health_pb2.HealthCheckRequest(service=name))
        return STATUS.Name(answer.status)


NAMES = ("startup", "liveness", "readiness", NAME, "")


async def states(address: str) -> list[bool]:
    return [await check(address, name) == "SERVING" for name in NAMES]


async def test_health_tells_startup_life_readiness_and_services_apart() -> None:
    async with running(FakeGeneration()) as (server, address):
        assert await states(address) == [True, True, True, True, True]
        server.set_serving([NAME], serving=False)
        assert await states(address) == [True, True, False, False, True]
        server.set_alive(False)
        assert await states(address) == [True, False, False, False, False]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await check(address, "nobody")
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_draining_server_is_alive_takes_calls_while_it_lingers_and_gets_no_new_ones() -> None:
    """Whoever restarts a process that is not alive must not restart one that is finishing its work."""
    async with running(FakeGeneration(), linger_seconds=1.5, health_port=0) as (server, address):
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        assert await states(address) == [True, True, False, False, False]
        server.set_serving([NAME])
        assert await states(f"127.0.0.1:{server.health_port}") == [True, True, False, False, False]
        async with AsyncDiptychClient(address) as client:
            assert (await client.complete(raw_text("x a b"), timeout=5)).text == "a b "
        await stopping


async def test_the_health_port_answers_health_alone() -> None:
    async with running(FakeGeneration(), health_port=0) as (server, _):
        address = f"127.0.0.1:{server.health_port}"
        assert await check(address, "readiness") == "SERVING"
        async with AsyncDiptychClient(address) as client:
            with pytest.raises(ClientError) as raised:
                await client.get_model_info(timeout=5)
    assert raised.value.code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_service_that_is_not_ready_yet_is_known_to_health() -> None:
    """NOT_FOUND, or SERVICE_UNKNOWN to who watches, would say that nobody here will ever serve it."""
    server = GrpcServer(ServerConfig(port=0, grace_seconds=0), registry=CollectorRegistry(), service_names=[NAME])
    address = f"127.0.0.1:{await server.start()}"
    try:
        assert [await check(address, name) for name in ("readiness", NAME)] == ["NOT_SERVING", "NOT_SERVING"]
        server.set_serving([NAME])
        assert await states(address) == [True] * 5
    finally:
        await server.stop()


async def test_health_lists_all_names() -> None:
    async with running(FakeGeneration()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_unary("/grpc.health.v1.Health/List")
        answer = health_pb2.HealthListResponse.FromString(await method(b""))  # type: ignore[attr-defined] # too new
        assert set(answer.statuses) == set(NAMES)


async def test_a_watch_tells_every_change() -> None:
    async with running(FakeGeneration()) as (server, address), grpc.aio.insecure_channel(address) as channel:
        watch = stub(channel).Watch(health_pb2.HealthCheckRequest(service="another"))
        assert STATUS.Name((await watch.read()).status) == "SERVICE_UNKNOWN"
        for serving in (True, False, True):
            server.set_serving(["another"], serving=serving)
            assert STATUS.Name((await watch.read()).status) == ("SERVING" if serving else "NOT_SERVING")


async def test_a_watch_does_not_hold_up_the_end() -> None:
    service = running(FakeGeneration(), grace_seconds=30)
    async with service as (server, address), grpc.aio.insecure_channel(address) as channel:
        watch = stub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        await watch.read()
        started = time.monotonic()
        await server.stop()
        assert time.monotonic() - started < 5
        assert STATUS.Name((await watch.read()).status) == "NOT_SERVING"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await watch.read()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(number: signal.Signals) -> None:
    with server_process() as (process, address):
        with grpc.insecure_channel(address) as channel, DiptychClient(address) as client:
            watch = stub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=10)
            assert STATUS.Name(next(watch).status) == "SERVING"
            stream = client.generate(raw_text("x slow slow slow slow"))
            next(stream)
            process.send_signal(number)
            assert STATUS.Name(next(watch).status) == "NOT_SERVING"
            with DiptychClient(address) as late, pytest.raises(ClientError) as refused:
                late.complete(raw_text("x a"), timeout=5)
            assert refused.value.code == grpc.StatusCode.UNAVAILABLE
            assert [response.WhichOneof("event") for response in stream] == ["delta"] * 4 + ["finish"]
        assert process.wait(timeout=10) == 0


def test_the_end_of_the_grace_time_cuts_calls_off() -> None:
    with server_process(grace=0.3) as (process, address), DiptychClient(address, resumes=False) as client:
        stream = client.generate(raw_text("x forever"))
        next(stream)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ClientError) as raised:
            list(stream)
        assert (raised.value.code.name, raised.value.reason) == ("UNAVAILABLE", "DRAINING")
        assert process.wait(timeout=10) == 0


def test_a_second_signal_ends_the_grace_time() -> None:
    with server_process(grace=60) as (process, address), DiptychClient(address, resumes=False) as client:
        stream = client.generate(raw_text("x forever"))
        next(stream)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ClientError) as raised:
            list(stream)
        assert raised.value.reason == "DRAINING"
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("which", ["port", "metrics_port"])
async def test_a_port_in_use_is_one_clear_line_and_a_status(which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListenError) as raised:
            async with running(FakeGeneration(), **{which: port}):
                pass
    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "in use" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_second_server_cannot_share_a_port() -> None:
    with server_process() as (_, address), server_process(port=int(address.split(":")[1])) as (second, _):
        assert second.stderr is not None
        assert second.wait(timeout=10) == 1
        words = f"cannot listen on {address}: the port is in use; choose another with --port"
        assert second.stderr.read() == f"fake: {words}\n"


async def test_metrics_are_served_while_the_server_runs() -> None:
    async with running(FakeGeneration(), metrics_port=0) as (server, address):
        await check(address, "")
        port = server.metrics_port
        page = await asyncio.to_thread(_read, port)
        assert 'grpc_server_started_total{grpc_method="Check",grpc_service="grpc.health.v1.Health"} 1.0' in page
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(_read, port)


def _read(port: int | None) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        text: str = page.read().decode()
        return text


@pytest.mark.parametrize("reflection", [True, False])
async def test_reflection_is_there_only_where_asked_for(reflection: bool) -> None:
    def list_services(address: str) -> list[str]:
        with grpc.insecure_channel(address) as channel:
            return sorted(ProtoReflectionDescriptorDatabase(channel).get_services())

    async with running(FakeGeneration(), reflection=reflection) as (_, address):
        if reflection:
            names = await asyncio.to_thread(list_services, address)
            assert names == [NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
        else:
            with pytest.raises(grpc.RpcError):
                await asyncio.to_thread(list_services, address)


async def test_a_message_over_the_limit_is_refused() -> None:
    service = running(FakeGeneration(), max_message_bytes=2048)
    async with service as (_, address), grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"/{NAME}/Tokenize")
        request = pb.TokenizeRequest(text=pb.RawText(text="x" * 3000))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request.SerializeToString())
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_readers_for_whom_there_was_no_thread_take_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with running(FakeGeneration(), metrics_port=0) as (server, _):
        with monkeypatch.context() as patch:
            patch.setattr(socketserver.ThreadingMixIn, "process_request", no_thread)
            for _ in range(40):
                with pytest.raises(OSError):  # noqa: PT011 - however the connection ends
                    await asyncio.to_thread(_read, server.metrics_port)
        assert "grpc_server_started_total" in await asyncio.to_thread(_read, server.metrics_port)
