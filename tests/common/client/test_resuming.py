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


UNAVAILABLE = ClientError(grpc.StatusCode.UNAVAILABLE, "", "gone")


@pytest.mark.parametrize(
    ("sampling", "resumes", "gets_one"),
    [
        ({"temperature": 0.5}, True, True),
        ({"temperature": 0.5, "n": 1}, True, True),
        ({"temperature": 0.5, "n": 2}, True, False),
        ({"temperature": 0.5}, False, False),
        ({"temperature": 0.0}, True, False),
        ({}, True, False),
    ],
)
def test_only_a_random_stream_that_can_be_taken_up_gets_a_seed(
    sampling: dict[str, float], resumes: bool, gets_one: bool
) -> None:
    request = pb.GenerateRequest(sampling=pb.SamplingParams(**sampling))  # type: ignore[arg-type]
    assert Progress(request, end=None, resumes=resumes).request().sampling.HasField("seed") == gets_one


def test_a_seed_that_is_given_stays() -> None:
    request = pb.GenerateRequest(sampling=pb.SamplingParams(temperature=1.0, seed=7))
    assert Progress(request, end=None, resumes=True).request().sampling.seed == 7


def test_a_stream_is_asked_for_anew_before_its_first_token_and_behind_the_last_one_after_that() -> None:
    progress = Progress(pb.GenerateRequest(request_id="r"), end=None, resumes=True)
    prompt = pb.GenerateResponse(seq=0, prompt=pb.PromptInfo())
    assert progress.take(prompt)
    assert progress.request() == pb.GenerateRequest(request_id="r")
    assert not progress.take(prompt), "the caller has it already"
    assert progress.take(pb.GenerateResponse(seq=1, delta=pb.Delta(token_ids=[4, 5], text="some ")))
    assert progress.take(pb.GenerateResponse(seq=2, delta=pb.Delta(token_ids=[6], text="é")))
    resume_from = pb.ResumePoint(token_ids=[4, 5, 6], num_characters=6, num_messages=3)
    for _ in range(2):
        assert progress.request() == pb.GenerateRequest(request_id="r", resume_from=resume_from)


def test_a_stream_is_tried_four_times_with_pauses_that_double() -> None:
    progress, pauses = Progress(pb.GenerateRequest(), end=None, resumes=True), []
    progress.request()
    progress.take(pb.GenerateResponse(prompt=pb.PromptInfo()))
    for _ in range(3):
        pauses.append(progress.pause_after(UNAVAILABLE))
        progress.request()
    assert pauses == pytest.approx([0.1, 0.2, 0.4])
    with pytest.raises(ClientError):
        progress.pause_after(UNAVAILABLE)


@pytest.mark.parametrize(("resumes", "num_messages"), [(False, 1), (True, 0)])
def test_what_is_not_to_be_taken_up_or_grpc_has_tried_again_itself_is_not(resumes: bool, num_messages: int) -> None:
    progress = Progress(pb.GenerateRequest(), end=None, resumes=resumes)
    progress.request()
    for seq in range(num_messages):
        progress.take(pb.GenerateResponse(seq=seq, prompt=pb.PromptInfo()))
    with pytest.raises(ClientError):
        progress.pause_after(UNAVAILABLE)


@pytest.mark.parametrize(
    ("message", "passes"), [("Locally cancelled by application!", False), ("Channel closed!", False), ("", True)]
)
def test_a_call_that_its_own_side_has_cancelled_stays_so(message: str, passes: bool) -> None:
    progress = Progress(pb.GenerateRequest(), end=None, resumes=True)
    progress.request()
    with nullcontext() if passes else pytest.raises(ClientError):
        assert progress.pause_after(ClientError(grpc.StatusCode.CANCELLED, "", message)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("code", "reason", "num_tries", "passes"),
    [
        (grpc.StatusCode.INTERNAL, "ENCODE_FAILED", 1, False),
        (grpc.StatusCode.INTERNAL, "ENCODE_FAILED", 2, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 1, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 2, True),
        (grpc.StatusCode.ABORTED, "REQUEST_RUNNING", 2, True),
    ],
)
def test_a_stream_that_has_begun_ends_with_what_no_other_call_would_mend(
    code: grpc.StatusCode, reason: str, num_tries: int, passes: bool
) -> None:
    progress = Progress(pb.GenerateRequest(), end=None, resumes=True)
    progress.take(pb.GenerateResponse(prompt=pb.PromptInfo()))
    for _ in range(num_tries):
        progress.request()
    with nullcontext() if passes else pytest.raises(ClientError):
        assert progress.pause_after(ClientError(code, reason, ""))
