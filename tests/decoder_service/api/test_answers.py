"""What a caller is told, and when, by a servicer with a real engine whose steps the test lets end."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext
from typing import Any, ClassVar, cast

import pytest
from prometheus_client import CollectorRegistry

from common.errors import DeadlineExceededError, InvalidArgumentError
from common.image.header import ImageLimits
from common.security.principal import Principal, acting_for
from decoder_service.adapters.adapter_ref import AdapterRef
from decoder_service.api.model_info import ModelInfo
from decoder_service.api.servicer import GenerationServicer, ServicerLimits
from decoder_service.engine.admission import AdmissionLimits
from decoder_service.engine.generation import Pace
from decoder_service.engine.step import ScheduledBatch, StepResult
from decoder_service.prompt.prompt import PromptBuilder, PromptLimits
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.scheduling.capacity import Capacity
from decoder_service.telemetry.request_metrics import RequestMetrics
from decoder_service.text.detokenizer import TokenTexts
from diptych.v1 import generation_pb2 as pb
from tests.decoder_service.engine.bench import Bench, StepwiseRunner, expected

NUM_IDS, MODEL_LEN = 200, 64
PROMPT = [5, 6, 7]


class Letters(Tokenizer):
    """Every token writes one letter."""

    def __init__(self) -> None:
        texts = TokenTexts(pieces=[self.letter(token_id).encode() for token_id in range(NUM_IDS)])
        super().__init__(texts=texts, bos_id=1, eos_id=2, image_ids=None, chat_template=None)

    @staticmethod
    def letter(token_id: int) -> str:
        return chr(ord("a") + token_id % 26)

    def encode_text(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


class GatedRunner(StepwiseRunner):
    """Does some steps, and the others once the gate is open."""

    def __init__(self, *, num_free: int) -> None:
        super().__init__()
        self.num_free = num_free
        self.gate = threading.Event()

    def execute(self, batch: ScheduledBatch) -> StepResult:
        self.num_free -= 1
        assert self.num_free >= 0 or self.gate.wait(timeout=20)
        return super().execute(batch)


class Caller:
    """Calls a servicer without a network."""

    def __init__(self, *, num_free: int) -> None:
        self.bench = Bench()
        self.runner = self.bench.runner = GatedRunner(num_free=num_free)
        self.bench.host._engine._pipeline._runner = self.runner
        tokenizer = Letters()
        self.registry = CollectorRegistry()
        self.servicer = GenerationServicer(
            host=self.bench.host,
            store=self.bench.store,
            encoder=None,
            prompts=PromptBuilder(
                tokenizer,
                vocabulary_size=NUM_IDS,
                limits=PromptLimits(max_prompt_tokens=60, max_images=1, image=ImageLimits(max_bytes=9, max_pixels=9)),
            ),
            tokenizer=tokenizer,
            info=cast(ModelInfo, Info()),
            limits=ServicerLimits(
                capacity=Capacity(max_model_len=MODEL_LEN, num_blocks=16, block_size=4, max_num_requests=4),
                admission=AdmissionLimits(max_requests=9, max_waiting_tokens=999, max_picture_bytes=99),
                pace=Pace(max_unread_tokens=99),
                max_seconds=99,
                max_priority=0,
            ),
            metrics=RequestMetrics(self.registry),
            structures=None,
        )

    async def generate(self, request: pb.GenerateRequest, *, seconds: float = 15) -> list[pb.GenerateResponse]:
        """All messages; no test waits for ever."""
        async with asyncio.timeout(10):
            return [each async for each in self.servicer.Generate(request, cast(Any, Context(seconds)))]


class Info:
    vocabulary_size, max_model_len, model_name, end_token_ids = NUM_IDS, MODEL_LEN, "fake", frozenset[int]()
    adapters: ClassVar[dict[str, AdapterRef]] = {}


class Context:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time_remaining(self) -> float:
        return self._seconds


@pytest.fixture
async def caller(request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    """Idle again after the test."""
    caller = Caller(num_free=getattr(request, "param", 10**6))
    caller.bench.host.start()
    yield caller
    caller.runner.gate.set()
    await caller.servicer.close()
    stats = caller.bench.host.stats
    assert (stats.num_waiting, stats.num_running, caller.bench.host.num_requests) == (0, 0, 0)
    await caller.bench.host.stop()
    assert (caller.servicer.admission.num_requests, len(caller.servicer._open._names)) == (0, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def asking(name: str = "", **sampling: Any) -> pb.GenerateRequest:  # noqa: ANN401
    return pb.GenerateRequest(
        request_id=name, token_ids=pb.TokenIds(ids=PROMPT), sampling=pb.SamplingParams(**{"max_tokens": 20, **sampling})
    )


def resuming(tokens: list[int], **point: int) -> pb.GenerateRequest:
    request = asking(max_tokens=3)
    request.resume_from.token_ids.extend(tokens)
    request.resume_from.num_messages = point.get("num_messages", 2)
    request.resume_from.num_characters = point.get("num_characters", 0)
    return request


FIRST = Letters.letter(expected(PROMPT, 1)[0])


@pytest.mark.parametrize("caller", [1], indirect=True)
async def test_no_time_of_a_request_is_counted_twice(caller: Caller) -> None:
    """The engine takes a request between two steps: that wait is one for its turn, and no part of preparing it."""
    first = asyncio.create_task(caller.generate(asking("a", max_tokens=3)))
    while caller.runner.num_free >= 0:
        await asyncio.sleep(0.001)
    second = asyncio.create_task(caller.generate(asking("b", max_tokens=3)))
    await asyncio.sleep(0.1)
    caller.runner.gate.set()
    await asyncio.gather(first, second)

    def seconds(name: str) -> float:
        return caller.registry.get_sample_value(f"diptych_{name}_seconds_sum") or 0.0

    stages = ("prepare", "queue", "prefill", "decode")
    assert sum(seconds(f"request_{stage}_time") for stage in stages) <= seconds("e2e_request_latency")


@pytest.mark.parametrize("caller", [0], indirect=True)
async def test_the_prompt_is_told_of_before_a_step_that_takes_long_has_ended(caller: Caller) -> None:
    responses: Any = caller.servicer.Generate(asking(), cast(Any, Context(15)))
    async with asyncio.timeout(10), aclosing(responses) as stream:
        assert (await anext(stream)).prompt.prompt_tokens == len(PROMPT)
        assert not caller.runner.gate.is_set()
        caller.runner.gate.set()
        assert [token async for each in stream for token in each.delta.token_ids] == expected(PROMPT, 20)


@pytest.mark.parametrize("caller", [0], indirect=True)
async def test_a_caller_whose_time_is_up_before_the_prompt_is_told_of_is_told_so(caller: Caller) -> None:
    with pytest.raises(DeadlineExceededError):
        await caller.generate(asking(), seconds=0.01)


@pytest.mark.parametrize("caller", [1], indirect=True)
async def test_a_stream_that_a_stop_text_ends_does_not_wait_for_the_step_under_way(caller: Caller) -> None:
    responses = await caller.generate(asking("a", stop=[FIRST]))
    assert responses[-1].finish.stop_text == FIRST
    # Its name is free when the engine has let go of it, and whoever asks under it again waits for that.
    again = asyncio.create_task(caller.generate(asking("a", stop=[FIRST], seed=7)))
    await asyncio.sleep(0.05)
    assert not again.done()
    caller.runner.gate.set()
    assert (await again)[-1].finish.stop_text == FIRST


@pytest.mark.parametrize("caller", [0], indirect=True)
async def test_a_deadline_is_told_while_a_step_is_under_way(caller: Caller) -> None:
    running = asyncio.create_task(caller.generate(asking()))
    await asyncio.sleep(0.05)
    # This one is not even submitted yet.
    with pytest.raises(DeadlineExceededError):
        await caller.generate(asking(), seconds=0.05)
    assert not running.done()
    caller.runner.gate.set()
    assert (await running)[-1].HasField("finish")


@pytest.mark.parametrize("n", [1, 2])
async def test_every_token_is_charged_and_the_first_is_timed_once(caller: Caller, n: int) -> None:
    charged: list[int] = []
    with acting_for(Principal("a"), charged.append):
        await caller.generate(asking(n=n, max_tokens=6))
    assert (charged[0], sum(charged[1:])) == (len(PROMPT), 6 * n)
    assert caller.registry.get_sample_value("diptych_time_to_first_token_seconds_count") == 1


@pytest.mark.parametrize("num_messages", [0, 2])
async def test_a_completion_that_had_ended_is_told_with_its_prompt_to_who_has_no_message(
    caller: Caller, num_messages: int
) -> None:
    responses = await caller.generate(resuming(expected(PROMPT, 3), num_messages=num_messages))
    kinds = [response.WhichOneof("event") for response in responses]
    assert kinds == ["prompt", "delta", "finish"][bool(num_messages) :]
    assert [response.seq for response in responses] == list(range(num_messages, num_messages + len(kinds)))
    assert responses[-1].finish.usage.completion_tokens == 3


async def test_more_tokens_than_a_completion_can_have_are_refused_before_they_are_read(caller: Caller) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await caller.generate(resuming([10**6] * (MODEL_LEN + 1)))
    error = caught.value
    assert (error.reason, error.field) == ("TOO_MANY_VALUES", "resume_from.token_ids")
    assert error.metadata["limit"] == str(MODEL_LEN)


async def test_a_prompt_that_is_only_laid_out_has_the_same_bounds(caller: Caller) -> None:
    request = pb.TokenizeRequest(token_ids=pb.TokenIds(ids=PROMPT, images=[pb.Image(data=bytes(100))]))
    with pytest.raises(InvalidArgumentError) as caught:
        await caller.servicer.Tokenize(request, cast(Any, Context(9)))
    assert caught.value.reason == "IMAGES_TOO_LARGE"
    assert caller.servicer.admission.num_requests == 0


@pytest.mark.parametrize("caller", [1], indirect=True)
async def test_the_engine_computes_nothing_more_of_a_completion_that_a_stop_text_ended(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one ends with the request."""
    ended: list[int] = []
    end = caller.bench.host.end

    def noting(request_id: str, index: int, **options: Any) -> None:  # noqa: ANN401
        ended.append(index)
        end(request_id, index, **options)

    monkeypatch.setattr(caller.bench.host, "end", noting)
    responses = await caller.generate(asking(stop=[FIRST], n=2))
    assert [each.finish.stop_text for each in responses if each.HasField("finish")] == [FIRST, FIRST]
    assert ended == [0]


@pytest.mark.parametrize(("ids", "num_threads"), [(3, 0), (59, 0), (2000, 1)])
async def test_only_a_prompt_of_many_ids_is_looked_at_on_a_thread(caller: Caller, ids: int, num_threads: int) -> None:
    request = asking("a", max_tokens=1)
    request.token_ids.ids.extend([9] * (ids - len(PROMPT)))
    refused = pytest.raises(InvalidArgumentError, match="token") if ids > MODEL_LEN else nullcontext()
    with refused:
        assert (await caller.generate(request))[0].prompt.prompt_tokens == ids
    assert len(caller.servicer._threads._threads) == num_threads
