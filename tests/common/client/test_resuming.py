"""What the client makes of a call that fails."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext

import grpc
import pytest

from common.calls.observer import Context
from common.client.client import AsyncDiptychClient, DiptychClient
from common.client.messages import raw_text
from common.client.resuming import Progress
from common.client.types import ClientError
from common.errors import AbortedError, CancelledError, DiptychError, ResourceExhaustedError, UnavailableError
from diptych.v1 import generation_pb2 as pb
from tests.fake_generation import FakeGeneration, running

RUNNING = AbortedError("REQUEST_RUNNING", "this request is running already")
FULL = ResourceExhaustedError("QUEUE_FULL", "too many requests are open", retry_after=0.01)
GONE = UnavailableError("DRAINING", "Not now.", retry_after=0.01)


class Failing(FakeGeneration):
    """Ends its calls with errors, each after so many messages."""

    def __init__(self, *ends: tuple[int, DiptychError]) -> None:
        super().__init__()
        self._ends = iter(ends)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        count, error = next(self._ends, (99, None))
        async for response in super().Generate(request, context):
            if not count:
                break
            count -= 1
            yield response
        if error is not None:
            raise error


async def tokens_of(*ends: tuple[int, DiptychError]) -> tuple[Sequence[int], int]:
    """The tokens of a completion over failing calls, and how many calls it took."""
    servicer = Failing(*ends)
    async with running(servicer) as (_, address), AsyncDiptychClient(address) as client:
        completion = await client.complete(raw_text("x some words"), request_id="mine", timeout=10)
    return completion.token_ids, servicer.num_attempts


async def test_a_whole_answer_is_not_thrown_away_for_the_status_behind_it() -> None:
    assert await tokens_of((4, GONE)) == ((4, 5), 1)


@pytest.mark.parametrize("count", [0, 2])
async def test_a_call_that_a_stopping_server_cancels_is_made_again(count: int) -> None:
    tokens, num_calls = await tokens_of((count, CancelledError("CANCELLED", "CANCELLED")))
    assert (tokens, num_calls) == ((4, 5), 2)


async def test_threads_keep_a_whole_answer_too() -> None:
    def complete(address: str) -> str:
        with DiptychClient(address) as client:
            return client.complete(raw_text("x some words"), timeout=10).text

    async with running(Failing((4, GONE))) as (_, address):
        assert await asyncio.to_thread(complete, address) == "some words "


async def test_a_client_waits_until_the_server_knows_that_its_call_broke() -> None:
    assert await tokens_of((1, GONE), (0, RUNNING), (0, RUNNING)) == ((4, 5), 4)


async def test_a_client_that_goes_on_waits_for_a_server_that_is_full() -> None:
    assert await tokens_of((1, GONE), (0, FULL)) == ((4, 5), 3)


async def test_a_request_that_is_new_is_not_tried_again_at_a_server_that_is_full() -> None:
    with pytest.raises(ClientError) as raised:
        await tokens_of((0, FULL))
    assert raised.value.reason == "QUEUE_FULL"


async def test_a_request_that_somebody_else_runs_is_not_tried_again() -> None:
    with pytest.raises(ClientError) as raised:
        await tokens_of((0, RUNNING))
    assert raised.value.reason == "REQUEST_RUNNING"


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_is_whole_with_the_finish_of_every_completion(n: int) -> None:
    progress = Progress(pb.GenerateRequest(sampling=pb.SamplingParams(n=n)), end=None, resumes=True)
    error = ClientError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "")
    for seq in range(n):
        with pytest.raises(ClientError):
            progress.pause_after(error)
        progress.take(pb.GenerateResponse(seq=seq, index=seq, finish=pb.Finish()))
    assert progress.pause_after(error) is None


@pytest.mark.parametrize(("timeout", "waits"), [(None, True), (60.0, True), (4.0, False)])
def test_nobody_waits_for_a_server_beyond_the_deadline(timeout: float | None, waits: bool) -> None:
    end = None if timeout is None else time.monotonic() + timeout
    progress = Progress(pb.GenerateRequest(), end=end, resumes=True)
    progress.take(pb.GenerateResponse(prompt=pb.PromptInfo()))
    error = ClientError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "", retry_after=5.0)
    progress.request()
    with nullcontext() if waits else pytest.raises(ClientError):
        assert progress.pause_after(error) == 5.0
