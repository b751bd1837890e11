"""A stream that broke after any of its messages goes on, on the same server or another, as if it had not."""

from typing import Any

import grpc
import pytest

from common.client.client import DiptychClient
from common.client.messages import GenerateOptions, generate_request, raw_text
from common.client.types import CompletionBuilder, to_client_error
from diptych.v1 import generation_pb2 as pb
from diptych.v1.generation_pb2_grpc import GenerationServiceStub
from tests.end_to_end.questions import question
from tests.end_to_end.services import Service, decoder_service

LONG: GenerateOptions = {"max_tokens": 24, "ignore_eos": True}
CASES: dict[str, GenerateOptions] = {
    "greedy": {**LONG},
    "broken characters": {**LONG, "temperature": 2.0, "seed": 3, "logprobs": 2},
    "penalties": {**LONG, "temperature": 1.0, "seed": 5, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
    "ends by itself": {"max_tokens": 60, "min_tokens": 8},
    "structure": {"max_tokens": 60, "temperature": 1.0, "seed": 7, "regex": "[a-z]{3} [0-9]{9,12}!"},
}


def stream(decoder: Service, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    with grpc.insecure_channel(decoder.address) as channel:
        return list(GenerationServiceStub(channel).Generate(request, timeout=60))


def joined(responses: list[pb.GenerateResponse]) -> tuple[Any, ...]:
    """All that a caller can know but times and caches, and how the text is cut."""
    finish = responses[-1].finish
    return (
        "".join(response.delta.text for response in responses),
        [token_id for response in responses for token_id in response.delta.token_ids],
        [round(each.logprob, 3) for response in responses for each in response.delta.logprobs],
        finish.reason,
        finish.WhichOneof("stop"),
        finish.usage.completion_tokens,
        finish.usage.prompt_tokens,
    )


def after(request: pb.GenerateRequest, had: list[pb.GenerateResponse]) -> pb.GenerateRequest:
    """The request that goes on behind these messages."""
    again = pb.GenerateRequest()
    again.CopyFrom(request)
    again.resume_from.token_ids.extend(token_id for response in had for token_id in response.delta.token_ids)
    again.resume_from.num_characters = sum(len(response.delta.text) for response in had)
    again.resume_from.num_messages = len(had)
    return again


def check_every_break(decoder: Service, request: pb.GenerateRequest, *, step: int) -> None:
    whole = stream(decoder, request)
    places = [place for place in range(2, len(whole)) if whole[place - 1].HasField("delta")]
    assert places
    for place in places[::step] + places[-1:]:
        both = whole[:place] + stream(decoder, after(request, whole[:place]))
        assert joined(both) == joined(whole), place
        assert [response.seq for response in both] == list(range(len(both)))


@pytest.mark.parametrize("case", CASES)
def test_a_stream_goes_on_behind_every_message(client: DiptychClient, decoder: Service, case: str) -> None:
    prompt, _ = question("shapes", 3)
    check_every_break(decoder, generate_request(prompt, CASES[case]), step=3)


def test_a_stop_text_across_the_break_is_found(client: DiptychClient, decoder: Service) -> None:
    prompt, _ = question("shapes", 3)
    sampled: GenerateOptions = {**LONG, "temperature": 1.5, "seed": 4}
    plain = stream(decoder, generate_request(prompt, sampled))
    text = "".join(response.delta.text for response in plain)
    stop = next(text[place : place + 3] for place in range(8, 20) if text.index(text[place : place + 3]) == place)
    options: GenerateOptions = {**sampled, "stop": [stop]}
    check_every_break(decoder, generate_request(prompt, options), step=1)


@pytest.mark.parametrize(
    ("options", "ids", "characters", "reason", "field"),
    [
        ({"temperature": 1.0}, [100], 0, "MISSING_FIELD", "sampling.seed"),
        ({"n": 2}, [100], 0, "FIELDS_CONFLICT", "sampling.n"),
        ({}, [], 0, "MISSING_FIELD", "resume_from.token_ids"),
        ({}, [10**6], 0, "INVALID_TOKEN_ID", "resume_from.token_ids[0]"),
        ({}, [100], 9, "RESUME_MISMATCH", "resume_from.num_characters"),
        ({"max_tokens": 2}, [100] * 3, 0, "RESUME_MISMATCH", "resume_from.token_ids"),
        ({"regex": "[0-9]+"}, [110 + 13 * 3] * 2, 0, "RESUME_MISMATCH", "resume_from.token_ids"),
    ],
)
def test_what_cannot_have_come_so_far_is_refused(
    client: DiptychClient,
    decoder: Service,
    options: Any,  # noqa: ANN401
    ids: list[int],
    characters: int,
    reason: str,
    field: str,
) -> None:
    request = generate_request(raw_text("x"), options)
    request.resume_from.token_ids.extend(ids)
    request.resume_from.num_characters = characters
    request.resume_from.num_messages = 2
    with pytest.raises(grpc.RpcError) as caught:
        stream(decoder, request)
    error = to_client_error(caught.value)
    assert (error.reason, error.field) == (reason, field)


def test_a_client_goes_on_at_another_decoder_when_one_is_killed_in_the_middle(vision: Service) -> None:
    options: GenerateOptions = {"max_tokens": 1200, "ignore_eos": True, "seed": 9, "temperature": 1.0}
    flags = ("--num-blocks", "256", "--max-num-requests", "8")
    with (
        decoder_service(*flags, vision=vision.address) as first,
        decoder_service(*flags, vision=vision.address) as other,
    ):
        for each in (first, other):
            each.wait_serving()
        with DiptychClient(other.address) as client:
            whole = client.complete(raw_text("circle"), timeout=60, **options)
        ports = ",".join(each.address for each in (first, other))
        with DiptychClient(f"ipv4:{ports}") as client:
            builder, killed = CompletionBuilder(), False
            for response in client.generate(raw_text("circle"), timeout=60, **options):
                builder.add(response)
                if not killed and response.delta.token_ids:
                    serving = next(each for each in (first, other) if each.metric("diptych_num_requests_running"))
                    serving.kill()
                    killed = True
            done = builder.build()
    assert killed
    assert (done.text, done.token_ids) == (whole.text, whole.token_ids)
    assert done.usage.completion_tokens == 1200
