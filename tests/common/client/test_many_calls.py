"""A client has as many calls under way as its server takes, and the others wait for their turn."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest

from common.calls.observer import Context
from common.client.client import AsyncDiptychClient, DiptychClient
from common.client.messages import raw_text
from common.client.types import ClientError
from common.errors import UnavailableError
from diptych.v1 import generation_pb2 as pb
from tests.fake_generation import FakeGeneration, running
from tests.waiting import until

FOREVER = raw_text("x some forever")


class BreaksOnce(FakeGeneration):
    """Ends its first call behind its first token."""

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        async for response in super().Generate(request, context):
            yield response
            if self.num_attempts == 1 and response.HasField("delta"):
                raise UnavailableError("DRAINING", "Not now.", retry_after=0.05)


@pytest.fixture
async def service() -> AsyncIterator[tuple[FakeGeneration, str]]:
    servicer = FakeGeneration()
    async with running(servicer) as (_, address):
        yield servicer, address


async def read(client: AsyncDiptychClient, words: str) -> None:
    async with aclosing(client.generate(raw_text(words))) as responses:
        async for _ in responses:
            pass


async def test_calls_above_the_number_begin_when_others_end(service: tuple[FakeGeneration, str]) -> None:
    servicer, address = service
    async with AsyncDiptychClient(address, max_calls=3) as client:
        calls = [asyncio.create_task(read(client, "x some forever")) for _ in range(3)]
        await until(lambda: servicer.num_open == 3)
        calls += [asyncio.create_task(read(client, "x some forever")) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert servicer.num_open == 3
        calls[0].cancel()
        await until(lambda: len(servicer.requests) == 4)
        await asyncio.sleep(0.2)
        assert (servicer.num_open, len(servicer.requests)) == (3, 4)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert (await client.complete(raw_text("x two words"))).text == "two words "


async def test_waiting_for_a_turn_is_part_of_the_timeout(service: tuple[FakeGeneration, str]) -> None:
    _, address = service
    async with AsyncDiptychClient(address, max_calls=1) as client:
        first = asyncio.create_task(read(client, "x some forever"))
        await until(lambda: bool(service[0].num_open))
        for call in (client.complete(FOREVER, timeout=0.2), client.get_model_info(timeout=0.2)):
            begin = time.monotonic()
            with pytest.raises(ClientError) as raised:
                await call
            assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - begin >= 0.2
        first.cancel()
        await asyncio.wait({first})
        assert (await client.get_model_info(timeout=60)).model_name == "fake"


@pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf")])
async def test_a_timeout_may_be_longer_than_anybody_waits(service: tuple[FakeGeneration, str], timeout: float) -> None:
    """gRPC alone would take an end in more than some 290 years for one that is over."""
    async with AsyncDiptychClient(service[1]) as client:
        assert (await client.complete(raw_text("x two words"), timeout=timeout)).text == "two words "
        assert (await client.get_model_info(timeout=timeout)).model_name == "fake"


async def test_threads_wait_for_their_turn_as_tasks_do(service: tuple[FakeGeneration, str]) -> None:
    servicer, address = service
    with DiptychClient(address, max_calls=1) as client:
        stream = client.generate(FOREVER)
        await asyncio.to_thread(next, stream)
        with pytest.raises(ClientError) as raised:
            await asyncio.to_thread(client.complete, raw_text("x two words"), timeout=0.2)
        assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(servicer.requests) == 1
        await asyncio.to_thread(stream.close)
        assert (await asyncio.to_thread(client.complete, raw_text("x two words"))).text == "two words "


@pytest.mark.parametrize("timeout", [0.0, -1.0])
async def test_a_call_whose_time_is_over_is_not_sent(service: tuple[FakeGeneration, str], timeout: float) -> None:
    """gRPC would send it and, more often than not, give the answer."""
    servicer, address = service
    async with AsyncDiptychClient(address) as client:
        for call in (client.complete(raw_text("x two"), timeout=timeout), client.get_model_info(timeout=timeout)):
            with pytest.raises(ClientError) as raised:
                await call
            assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not servicer.requests


async def test_closing_ends_those_that_wait(service: tuple[FakeGeneration, str]) -> None:
    """Though a stream that nobody reads keeps the only place."""
    client = AsyncDiptychClient(service[1], max_calls=1)
    stream = client.generate(FOREVER)
    await anext(stream)
    waiting = asyncio.create_task(client.get_model_info())
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(ClientError) as raised:
        await waiting
    assert raised.value.code is grpc.StatusCode.CANCELLED
    await stream.aclose()


async def test_a_stream_that_breaks_goes_on_before_those_that_wait() -> None:
    servicer = BreaksOnce()
    async with running(servicer) as (_, address), AsyncDiptychClient(address, max_calls=1) as client:
        prompts = map(raw_text, ("x first call", "x another", "x y"))
        calls = [asyncio.create_task(client.complete(prompt)) for prompt in prompts]
        await asyncio.wait(calls)
    assert [request.text.text for request in servicer.requests] == ["x first call"] * 2 + ["x another", "x y"]


async def test_many_more_calls_than_a_connection_takes_all_end_well(service: tuple[FakeGeneration, str]) -> None:
    async def call(client: AsyncDiptychClient) -> str:
        return (await client.complete(raw_text("x slow"))).text

    async with AsyncDiptychClient(service[1]) as client:
        texts = Counter(await asyncio.gather(*(call(client) for _ in range(250))))
    assert texts == {"slow ": 250}
