"""Both services as real processes, over real sockets, with the demo model."""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from common.client.client import DiptychClient
from common.client.messages import GenerateOptions, Prompt, raw_text, token_ids, user_message
from common.client.types import ClientError, Completion
from tests import pictures
from tests.end_to_end.questions import QUESTIONS, question
from tests.end_to_end.services import Service
from training.scores import held_out
from training.tasks import Task

WHOLE = pictures.save(pictures.noise(70, 50, seed=0))


@pytest.mark.parametrize("task", QUESTIONS)
def test_demo_model_answers_questions_about_pictures(client: DiptychClient, task: Task) -> None:
    asked = [question(task, index) for index in range(20)]
    right = sum(client.complete(prompt, timeout=30).text == answer for prompt, answer in asked)
    assert right >= 17


def test_concurrent_mixed_requests_get_the_ids_that_they_get_alone(client: DiptychClient) -> None:
    asked = _mixed_requests(40)
    alone = [_complete(client, prompt, options) for prompt, options in asked]
    with ThreadPoolExecutor(max_workers=40) as threads:
        together = list(threads.map(lambda each: _complete(client, *each), asked))
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert [each.text for each in together] == [each.text for each in alone]


def test_seeded_sampling_does_not_depend_on_the_batch(client: DiptychClient) -> None:
    options: GenerateOptions = {"temperature": 1.5, "seed": 11, "max_tokens": 40, "ignore_eos": True}
    alone = client.complete(raw_text("circle"), timeout=30, **options)
    with ThreadPoolExecutor(max_workers=16) as threads:
        together = threads.map(lambda _: client.complete(raw_text("circle"), timeout=30, **options), range(16))
    assert {each.token_ids for each in together} == {alone.token_ids}
    options["seed"] = 12
    other = client.complete(raw_text("circle"), timeout=30, **options)
    assert other.token_ids != alone.token_ids


def test_completions_of_one_prompt_are_numbered_in_one_stream_and_agree_with_their_seed(client: DiptychClient) -> None:
    prompt, _ = question("shapes", 3)
    options: GenerateOptions = {"temperature": 1.5, "seed": 11, "max_tokens": 30, "ignore_eos": True}
    several: GenerateOptions = {**options, "n": 4}
    alone = client.complete(prompt, timeout=30, **options)
    responses = list(client.generate(prompt, timeout=30, **several))
    assert [response.seq for response in responses] == list(range(len(responses)))
    events = [(response.WhichOneof("event"), response.index) for response in responses]
    assert events[0] == ("prompt", 0)
    assert sorted(event for event in events if event[0] == "finish") == [("finish", index) for index in range(4)]
    together = client.complete_all(prompt, timeout=30, **several)
    assert together[0].token_ids == alone.token_ids
    assert len({each.text for each in together}) == 4
    assert {each.usage.prompt_tokens for each in together} == {alone.usage.prompt_tokens}
    # Each is cut off by its own text, while the others go on.
    stop = together[1].text[5:7]
    shorter: GenerateOptions = {**several, "stop": [stop]}
    stopped = client.complete_all(prompt, timeout=30, **shorter)
    for whole, cut in zip(together, stopped, strict=True):
        assert cut.text == whole.text.partition(stop)[0]
        assert cut.finish_reason == ("stop" if stop in whole.text else "length")
    assert stopped[1].finish_reason == "stop"
    telling: GenerateOptions = {**options, "n": 3, "logprobs": 1, "prompt_logprobs": 1}
    judged = client.complete_all(prompt, timeout=30, **telling)
    assert [len(each.prompt_logprobs) for each in judged] == [alone.usage.prompt_tokens - 1, 0, 0]
    assert [each.token_ids for each in judged] == [each.token_ids for each in together[:3]]
    assert all(len(each.logprobs) == 30 for each in judged)


def test_answers_about_pictures_keep_to_the_structure_that_was_asked_for(client: DiptychClient) -> None:
    prompt, answer = question("number", 4)
    assert client.complete(prompt, timeout=30, regex="[0-9]+").text == answer, "the model's own answer is in it"
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    sampled: GenerateOptions = {"temperature": 1.0, "seed": 3, "max_tokens": 120, "json_schema": schema, "n": 3}
    sampled["logprobs"] = 1
    for done in client.complete_all(prompt, timeout=30, **sampled):
        assert done.finish_reason == "stop"
        assert 0 <= json.loads(done.text)["n"] <= 9
        assert len(done.logprobs) == len(done.token_ids)
    assert client.complete(prompt, timeout=30, choice=["circle", "square"]).text in ("circle", "square")
    with ThreadPoolExecutor(max_workers=12) as threads:
        texts = threads.map(lambda i: client.complete(prompt, timeout=30, regex=f"x{{{i}}}y").text, range(1, 13))
    assert list(texts) == ["x" * i + "y" for i in range(1, 13)]
    with pytest.raises(ClientError) as caught:
        client.complete(prompt, timeout=30, regex="(a")
    assert (caught.value.reason, caught.value.field) == ("STRUCTURE_INVALID", "structured.regex")
    with pytest.raises(ClientError) as caught:
        client.complete(prompt, timeout=30, regex="ab", min_tokens=20)
    assert caught.value.reason == "NO_TOKEN_LEFT"
    with pytest.raises(ClientError) as caught:
        client.complete(prompt, timeout=30, regex="ab", ignore_eos=True)
    assert caught.value.reason == "FIELDS_CONFLICT"


def test_prompt_can_be_sent_as_tokens(client: DiptychClient) -> None:
    prompt, _ = question("shapes", 3)
    images = held_out("shapes", 7, 3).png_images
    laid_out = client.tokenize(prompt, timeout=30)
    assert laid_out.placeholders[0].length == laid_out.placeholders[0].grid.height * (
        laid_out.placeholders[0].grid.width + 1
    )
    as_tokens = client.complete(token_ids(laid_out.token_ids, images), timeout=30)
    assert as_tokens.token_ids == client.complete(prompt, timeout=30).token_ids


def test_stop_text_ends_the_completion_and_is_not_told(client: DiptychClient) -> None:
    prompt, _ = question("shapes", 3)
    whole = client.complete(prompt, timeout=30, max_tokens=60, ignore_eos=True)
    stop = whole.text[4:7]
    stopped = client.complete(prompt, timeout=30, max_tokens=60, ignore_eos=True, stop=[stop])
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.usage.completion_tokens < whole.usage.completion_tokens


def test_logprobs_come_with_every_token_and_for_the_prompt(client: DiptychClient) -> None:
    prompt, _ = question("shapes", 3)
    plain = client.complete(prompt, timeout=30)
    for _ in range(2):  # The second time the prompt's keys and values are cached, and computed all the same.
        done = client.complete(prompt, timeout=30, logprobs=3, prompt_logprobs=2)
        assert done.token_ids == plain.token_ids
        assert len(done.logprobs) == done.usage.completion_tokens
        assert len(done.prompt_logprobs) == done.usage.prompt_tokens - 1
        for token_id, logprobs in zip(done.token_ids, done.logprobs, strict=True):
            assert logprobs.top[0] == (token_id, logprobs.logprob), "greedy takes the likeliest"
            assert len(logprobs.top) == 3
        assert all(each.logprob <= each.top[0][1] + 1e-6 for each in done.prompt_logprobs)
    assert not plain.logprobs
    assert not plain.prompt_logprobs


def test_tokens_are_chosen_within_what_the_caller_allows(client: DiptychClient) -> None:
    prompt, _ = question("number", 4)
    plain = client.complete(prompt, timeout=30)
    assert plain.finish_reason == "stop"
    longer = client.complete(prompt, timeout=30, max_tokens=60, min_tokens=plain.usage.completion_tokens + 20)
    assert longer.token_ids[: len(plain.token_ids) - 1] == plain.token_ids[:-1]
    assert longer.usage.completion_tokens > plain.usage.completion_tokens + 20
    without = client.complete(prompt, timeout=30, bad_words=[plain.text[:1]], max_tokens=20)
    assert plain.token_ids[0] not in without.token_ids
    included = client.complete(prompt, timeout=30, stop=[plain.text[-1]], include_stop=True)
    assert included.text == plain.text[: plain.text.index(plain.text[-1]) + 1]
    only = client.complete(prompt, timeout=30, allowed_token_ids=plain.token_ids[:1], max_tokens=5)
    assert only.token_ids == plain.token_ids[:1] * 5
    with pytest.raises(ClientError) as caught:
        client.complete(prompt, timeout=30, allowed_token_ids=[2], min_tokens=1, stop_token_ids=[2])
    assert (caught.value.reason, caught.value.field) == ("NO_TOKEN_LEFT", "sampling")


def test_stream_is_numbered_and_has_one_prompt_and_one_finish(client: DiptychClient) -> None:
    responses = list(client.generate(question("shapes", 1)[0], timeout=30))
    assert [response.seq for response in responses] == list(range(len(responses)))
    events = [response.WhichOneof("event") for response in responses]
    assert events[0] == "prompt"
    assert events[-1] == "finish"
    assert set(events[1:-1]) == {"delta"}
    usage = responses[-1].finish.usage
    assert usage.completion_tokens == sum(len(response.delta.token_ids) for response in responses[1:-1])


def test_usage_and_timings_are_told(client: DiptychClient) -> None:
    done = client.complete(question("number", 2)[0], timeout=30, cache_salt=b"nobody has asked it before")
    grid = done.grids[0]
    assert done.usage.image_tokens == grid.height * (grid.width + 1)
    assert done.usage.prompt_tokens > done.usage.image_tokens
    assert done.timings.encode_wait_seconds > 0
    assert done.timings.prefill_seconds > 0


def test_client_that_leaves_at_any_moment_frees_everything(client: DiptychClient) -> None:
    """The fixture checks that every block, byte and patch is free again."""
    rng = random.Random(5)
    barrier = threading.Semaphore(24)

    def ask_and_leave(index: int) -> None:
        prompt, _ = question(QUESTIONS[index % 4], index)
        with barrier:
            responses = client.generate(prompt, timeout=60, max_tokens=3000, ignore_eos=True)
            leaver = threading.Timer(rng.random() ** 3, responses.close) if index % 2 else None
            try:
                for count, _ in enumerate(responses):
                    if count > rng.randrange(12):
                        break
            finally:
                if leaver is None:
                    responses.close()

    with ThreadPoolExecutor(max_workers=24) as threads:
        list(threads.map(ask_and_leave, range(80)))


@pytest.mark.parametrize("timeout", [0.001, 0.02, 0.1, 0.4])
def test_deadline_ends_the_work_at_any_moment(client: DiptychClient, timeout: float) -> None:
    with pytest.raises(ClientError) as caught:
        client.complete(question("which", 1)[0], timeout=timeout, max_tokens=3500, ignore_eos=True)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("prompt", "options", "reason", "field"),
    [
        ([user_message("?", [b"no picture"])], {}, "IMAGE_UNDECODABLE", "chat.messages[0].parts[0].image"),
        ([user_message("?", [WHOLE, WHOLE[:-100]])], {}, "IMAGE_UNDECODABLE", "chat.messages[0].parts[1].image"),
        (raw_text("a"), {"temperature": 9.0}, "VALUE_OUT_OF_RANGE", "sampling.temperature"),
        (raw_text("a"), {"max_tokens": 100_000}, "MAX_TOKENS_TOO_LARGE", "sampling.max_tokens"),
        (raw_text(""), {}, "EMPTY_PROMPT", "text.text"),
        (token_ids([1, 10, 13]), {}, "IMAGE_COUNT_MISMATCH", None),
    ],
)
def test_bad_requests_are_refused_with_reason_and_field(
    client: DiptychClient, prompt: Prompt, options: GenerateOptions, reason: str, field: str | None
) -> None:
    with pytest.raises(ClientError) as caught:
        client.complete(prompt, timeout=30, **options)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == reason
    assert field is None or caught.value.field == field


def test_text_that_spells_control_tokens_stays_text(client: DiptychClient) -> None:
    laid_out = client.tokenize([user_message("[IMG][/INST]</s>[IMG_BREAK][IMG_END]")], timeout=30)
    assert list(laid_out.token_ids).count(client.get_model_info(timeout=30).image_token_id) == 0
    assert not laid_out.placeholders


def test_generic_client_finds_the_service_by_reflection(client: DiptychClient, decoder: Service) -> None:
    with grpc.insecure_channel(decoder.address) as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {"diptych.v1.GenerationService", "grpc.health.v1.Health"} <= services


def test_long_generations_outgrow_the_cache_and_still_agree(client: DiptychClient, decoder: Service) -> None:
    """256 blocks of 16 tokens hold six of these eight requests: the others are preempted and come back."""
    before = decoder.metric("diptych_num_preemptions_total")
    options: GenerateOptions = {"max_tokens": 600, "ignore_eos": True}
    asked = [(question(task, 5)[0], options) for task in QUESTIONS]
    alone = [_complete(client, prompt, options) for prompt, options in asked]
    with ThreadPoolExecutor(max_workers=8) as threads:
        together = list(threads.map(lambda each: _complete(client, *each), asked * 2))
    assert [each.token_ids for each in together] == [each.token_ids for each in alone] * 2
    assert decoder.metric("diptych_num_preemptions_total") > before


def test_first_token_comes_while_the_rest_is_generated(client: DiptychClient) -> None:
    start = time.monotonic()
    arrivals = [time.monotonic() - start for _ in client.generate(raw_text("red"), max_tokens=400, ignore_eos=True)]
    assert arrivals[1] < arrivals[-1] / 4


def _mixed_requests(count: int) -> list[tuple[Prompt, GenerateOptions]]:
    options: GenerateOptions = {"max_tokens": 24, "ignore_eos": True}
    return [
        (raw_text(f"text {index}") if index % 5 == 4 else question(QUESTIONS[index % 5], index)[0], options)
        for index in range(count)
    ]


def _complete(client: DiptychClient, prompt: Prompt, options: GenerateOptions) -> Completion:
    return client.complete(prompt, timeout=100, **options)
