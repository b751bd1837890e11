import contextlib
import math
import re
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgumentError
from decoder_service.adapters.adapter_ref import NO_ADAPTER, AdapterRef
from decoder_service.api.request_parser import (
    ParsedRequest,
    drop_pictures,
    parse_generate_request,
    parse_prompt,
    request_digest,
)
from decoder_service.api.sampling_parser import ParsedSampling
from decoder_service.prompt.prompt_spec import ChatMessage, ChatPrompt, Role, TextPrompt, TokenPrompt
from decoder_service.sampling.sampling_params import SamplingParams
from diptych.v1 import generation_pb2 as pb

VOCABULARY_SIZE = 1000
CATS = AdapterRef(0, b"of cats")
TEXT = pb.RawText(text="hi")
NUMBER = re.compile(r"\d[\d.e+-]*")


def parse(request: pb.GenerateRequest) -> ParsedRequest:
    return parse_generate_request(request, vocabulary_size=VOCABULARY_SIZE, max_priority=2, adapters={"cats": CATS})


def refusal(request: pb.GenerateRequest) -> tuple[str, str | None]:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(request)
    # Messages have no number that a program cannot find in the metadata, and the reverse.
    metadata = " ".join(caught.value.metadata.values())
    assert set(NUMBER.findall(caught.value.message)) == set(NUMBER.findall(metadata))
    return caught.value.reason, caught.value.field


def with_sampling(**fields: Any) -> pb.GenerateRequest:  # noqa: ANN401
    return pb.GenerateRequest(text=TEXT, sampling=pb.SamplingParams(**fields))


def with_chat(*messages: pb.Message) -> pb.GenerateRequest:
    return pb.GenerateRequest(chat=pb.Chat(messages=messages))


def user(*parts: pb.Part, role: int = pb.ROLE_USER) -> pb.Message:
    message = pb.Message(parts=parts)
    message.ParseFromString(message.SerializeToString() + bytes([8, role]))
    return message


def test_a_bare_request_takes_the_defaults() -> None:
    first, second = parse(pb.GenerateRequest(text=TEXT)), parse(pb.GenerateRequest(text=TEXT))
    assert first.prompt == TextPrompt("hi")
    assert first.sampling == ParsedSampling(params=SamplingParams(max_tokens=256, seed=first.sampling.params.seed))
    assert not first.sampling.params.steers_logits
    assert (first.cache_salt, first.priority) == (b"", 0)
    assert re.fullmatch("[0-9a-f]{32}", first.request_id)
    # Names and seeds that were not given are drawn.
    assert first.request_id != second.request_id
    assert first.sampling.params.seed != second.sampling.params.seed


def test_every_supported_field_is_read() -> None:
    sampling = pb.SamplingParams(
        max_tokens=7,
        min_tokens=7,
        temperature=0.5,
        top_p=0.25,
        top_k=9,
        min_p=0.125,
        repetition_penalty=1.5,
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={999: -100, 3: 0.5},
        stop=["a", "b" * 64],
        stop_token_ids=[3, 999, 3],
        ignore_eos=True,
        include_stop=True,
        seed=2**64 - 1,
        n=1,
        logprobs=20,
        prompt_logprobs=0,
        allowed_token_ids=[5, 3],
        bad_words=["no", " not"],
    )
    request = pb.GenerateRequest(
        request_id="A-z_0.9", text=TEXT, sampling=sampling, priority=-3, cache_salt=b"\0" * 64, lora="cats"
    )
    assert parse(request) == ParsedRequest(
        request_id="A-z_0.9",
        prompt=TextPrompt("hi"),
        sampling=ParsedSampling(
            params=SamplingParams(
                max_tokens=7,
                min_tokens=7,
                temperature=0.5,
                top_p=0.25,
                top_k=9,
                min_p=0.125,
                repetition_penalty=1.5,
                frequency_penalty=-2,
                presence_penalty=2,
                logit_bias=((3, 0.5), (999, -100)),
                seed=2**64 - 1,
                ignore_eos=True,
                stop_token_ids=frozenset({3, 999}),
                logprobs=20,
                prompt_logprobs=0,
                allowed_token_ids=(5, 3),
            ),
            max_tokens=7,
            stops=("a", "b" * 64),
            include_stop=True,
            bad_words=("no", " not"),
        ),
        priority=-3,
        structure=None,
        resumption=None,
        cache_salt=b"\0" * 64,
        adapter=CATS,
    )


def test_a_set_zero_is_not_unset() -> None:
    assert parse(with_sampling(temperature=0, top_k=0, min_p=0, seed=0, ignore_eos=False)).sampling.params.seed == 0
    assert refusal(with_sampling(max_tokens=0)) == ("VALUE_OUT_OF_RANGE", "sampling.max_tokens")


def test_chats_and_token_ids_are_read_in_order() -> None:
    image = pb.Part(image=pb.Image(data=b"file"))
    request = with_chat(
        user(pb.Part(text="s"), role=pb.ROLE_SYSTEM),
        user(pb.Part(text="a"), image, pb.Part(text="")),
        user(role=pb.ROLE_ASSISTANT),
    )
    assert parse(request).prompt == ChatPrompt(
        (
            ChatMessage(role=Role.SYSTEM, parts=("s",)),
            ChatMessage(role=Role.USER, parts=("a", b"file", "")),
            ChatMessage(role=Role.ASSISTANT, parts=()),
        )
    )
    token_ids = pb.TokenIds(ids=[1, 2**32 - 1], images=[pb.Image(data=b"x"), pb.Image()])
    for whole in (pb.GenerateRequest(token_ids=token_ids), pb.TokenizeRequest(token_ids=token_ids)):
        prompt = parse_prompt(whole)
        assert isinstance(prompt, TokenPrompt)
        assert list(prompt.token_ids) == [1, 2**32 - 1]
        assert prompt.images == (b"x", b"")


RANGES: dict[str, tuple[list[float], list[float]]] = {
    "temperature": ([0, -0.0, 1e-45, 2], [math.nan, math.inf, -math.inf, -1, -1e-45, 2.0001, 1e38]),
    "top_p": ([1e-45, 0.5, 1], [math.nan, math.inf, 0, -0.0, -1, 1.0001, 1e38]),
    "min_p": ([0, 0.5, 1], [math.nan, math.inf, -1e-45, -1, 1.0001, 1e38]),
    "top_k": ([0, 1, 1000], [1001, 2**32 - 1]),
    "max_tokens": ([1, 2**32 - 1], [0]),
    "min_tokens": ([0, 256], [257, 2**32 - 1]),  # where max_tokens is not set
    "repetition_penalty": ([0.1, 1, 10], [math.nan, math.inf, 0, -1, 0.0999, 10.001, 1e-45]),
    "frequency_penalty": ([-2, 0, 2], [math.nan, math.inf, -2.001, 2.001]),
    "presence_penalty": ([-2, 0, 2], [math.nan, -math.inf, -2.001, 2.001]),
    "n": ([1, 8], [0, 9, 2**32 - 1]),
    "logprobs": ([0, 20], [21, 2**32 - 1]),
    "prompt_logprobs": ([0, 20], [21]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in RANGES for value in RANGES[name][0]])
def test_values_in_range_pass(name: str, value: float) -> None:
    assert getattr(parse(with_sampling(**{name: value})).sampling.params, name) == pytest.approx(value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in RANGES for value in RANGES[name][1]])
def test_values_out_of_range_are_refused_with_their_field(name: str, value: float) -> None:
    assert refusal(with_sampling(**{name: value})) == ("VALUE_OUT_OF_RANGE", f"sampling.{name}")


OTHERS = {
    *("stop", "include_stop", "stop_token_ids", "ignore_eos", "seed"),
    *("logit_bias", "allowed_token_ids", "bad_words"),
}


def test_the_contract_has_no_other_sampling_fields() -> None:
    assert {field.name for field in pb.SamplingParams.DESCRIPTOR.fields} == RANGES.keys() | OTHERS


@pytest.mark.parametrize(
    ("structured", "expected"),
    [
        (pb.StructuredOutput(), ("MISSING_FIELD", "structured")),
        (pb.StructuredOutput(json_object=False), ("MISSING_FIELD", "structured.json_object")),
        (pb.StructuredOutput(regex=""), ("MISSING_FIELD", "structured.regex")),
        (pb.StructuredOutput(choice=pb.Choices()), ("MISSING_FIELD", "structured.choice.texts")),
        (pb.StructuredOutput(choice=pb.Choices(texts=["a", ""])), ("MISSING_FIELD", "structured.choice.texts[1]")),
        (pb.StructuredOutput(choice=pb.Choices(texts=["a"] * 1025)), ("TOO_MANY_VALUES", "structured.choice.texts")),
        (pb.StructuredOutput(json_schema="x" * 65537), ("TOO_MANY_VALUES", "structured.json_schema")),
        (pb.StructuredOutput(grammar="x" * 65537), ("TOO_MANY_VALUES", "structured.grammar")),
    ],
)
def test_structures_without_sense_or_of_too_many_characters_are_refused(
    structured: pb.StructuredOutput, expected: tuple[str, str]
) -> None:
    assert refusal(pb.GenerateRequest(text=TEXT, structured=structured)) == expected


def test_the_least_may_not_be_more_than_the_most() -> None:
    assert parse(with_sampling(max_tokens=9, min_tokens=9)).sampling.params.min_tokens == 9
    assert refusal(with_sampling(max_tokens=9, min_tokens=10)) == ("VALUE_OUT_OF_RANGE", "sampling.min_tokens")


@pytest.mark.parametrize("priority", [-10, 0, 2])
def test_anybody_may_ask_for_a_lower_class_and_for_the_highest_that_is_allowed(priority: int) -> None:
    assert parse(pb.GenerateRequest(text=TEXT, priority=priority)).priority == priority


@pytest.mark.parametrize("priority", [-11, 3, 2**31 - 1])
def test_other_classes_are_refused(priority: int) -> None:
    assert refusal(pb.GenerateRequest(text=TEXT, priority=priority)) == ("VALUE_OUT_OF_RANGE", "priority")


def test_an_adapter_is_found_by_its_name() -> None:
    assert parse(pb.GenerateRequest(text=TEXT, lora="cats")).adapter == CATS
    assert parse(pb.GenerateRequest(text=TEXT)).adapter == NO_ADAPTER


@pytest.mark.parametrize("name", ["", "Cats", "cats ", "dogs", "x" * 100_000])
def test_adapters_that_are_not_there_are_refused_in_few_words(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(pb.GenerateRequest(text=TEXT, lora=name))
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_ADAPTER", "lora")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("request_message", "reason", "field"),
    [
        (pb.GenerateRequest(), "MISSING_FIELD", "prompt"),
        (with_chat(user(pb.Part(text="a"), pb.Part())), "MISSING_FIELD", "chat.messages[0].parts[1]"),
        (with_chat(pb.Message(parts=[pb.Part(text="a")])), "INVALID_ROLE", "chat.messages[0].role"),
        (with_chat(user(), user(role=99)), "INVALID_ROLE", "chat.messages[1].role"),
        (with_chat(*[user()] * 16_385), "TOO_MANY_VALUES", "chat.messages"),
        (with_chat(*[user(*[pb.Part()] * 8193)] * 2), "TOO_MANY_VALUES", "chat.messages"),
        (
            pb.GenerateRequest(token_ids=pb.TokenIds(images=[pb.Image()] * 16_385)),
            "TOO_MANY_VALUES",
            "token_ids.images",
        ),
        (with_sampling(stop=["a"] * 17), "TOO_MANY_VALUES", "sampling.stop"),
        (with_sampling(stop=["a"] * 10**5), "TOO_MANY_VALUES", "sampling.stop"),
        (with_sampling(stop=["a", ""]), "MISSING_FIELD", "sampling.stop[1]"),
        (with_sampling(stop=["a" * 65]), "TOO_MANY_VALUES", "sampling.stop[0]"),
        (with_sampling(stop_token_ids=[1] * 65), "TOO_MANY_VALUES", "sampling.stop_token_ids"),
        (with_sampling(stop_token_ids=[1, 1000]), "INVALID_TOKEN_ID", "sampling.stop_token_ids[1]"),
        (with_sampling(allowed_token_ids=[1] * 1025), "TOO_MANY_VALUES", "sampling.allowed_token_ids"),
        (with_sampling(allowed_token_ids=[1000]), "INVALID_TOKEN_ID", "sampling.allowed_token_ids[0]"),
        (with_sampling(bad_words=["a"] * 65), "TOO_MANY_VALUES", "sampling.bad_words"),
        (with_sampling(bad_words=["a", ""]), "MISSING_FIELD", "sampling.bad_words[1]"),
        (with_sampling(bad_words=["a" * 65]), "TOO_MANY_VALUES", "sampling.bad_words[0]"),
        (with_sampling(logit_bias=dict.fromkeys(range(301), 1.0)), "TOO_MANY_VALUES", "sampling.logit_bias"),
        (with_sampling(logit_bias={1: 1.0, 1000: 1.0}), "INVALID_TOKEN_ID", "sampling.logit_bias[1000]"),
        (with_sampling(logit_bias={7: 100.5}), "VALUE_OUT_OF_RANGE", "sampling.logit_bias[7]"),
        (with_sampling(logit_bias={7: math.nan}), "VALUE_OUT_OF_RANGE", "sampling.logit_bias[7]"),
        (
            pb.GenerateRequest(text=TEXT, resume_from=pb.ResumePoint(token_ids=[1], num_messages=2**32 - 1)),
            "VALUE_OUT_OF_RANGE",
            "resume_from.num_messages",
        ),
        (pb.GenerateRequest(text=TEXT, cache_salt=b"x" * 65), "TOO_MANY_VALUES", "cache_salt"),
        *(
            (pb.GenerateRequest(text=TEXT, request_id=name), "INVALID_REQUEST_ID", "request_id")
            for name in ("a" * 65, "a b", "a\n", "é", "a/b", "\x1b[31m", "\0", "٣")
        ),
    ],
)
def test_wrong_requests_are_refused_with_their_field(
    request_message: pb.GenerateRequest, reason: str, field: str
) -> None:
    assert refusal(request_message) == (reason, field)


def test_a_stream_that_is_gone_on_with_is_the_same_request_as_before() -> None:
    whole, again, other = (pb.GenerateRequest(text=pb.RawText(text=text), request_id="a") for text in ("x", "x", "y"))
    again.resume_from.token_ids.append(7)
    assert request_digest(whole, ()) == request_digest(again, ()) != request_digest(other, ())
    assert list(again.resume_from.token_ids) == [7]


def chat_of(*parts: bytes | str) -> pb.GenerateRequest:
    said = [pb.Part(text=part) if isinstance(part, str) else pb.Part(image=pb.Image(data=part)) for part in parts]
    return pb.GenerateRequest(request_id="a", chat=pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, parts=said)]))


def ids_of(*pictures: bytes) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id="a", token_ids=pb.TokenIds(ids=[1], images=[pb.Image(data=each) for each in pictures])
    )


def digest_of(request: pb.GenerateRequest) -> bytes:
    prompt = parse(request).prompt
    assert isinstance(prompt, ChatPrompt | TokenPrompt)
    drop_pictures(request)
    return request_digest(request, prompt.images)


def test_requests_are_told_apart_by_their_pictures_which_the_message_has_no_more() -> None:
    requests = [
        *(chat_of(*parts) for parts in ((b"one", b"two"), (b"two", b"one"), (b"onet", b"wo"), (b"one",))),
        *(chat_of(*parts) for parts in (("one", b"two"), ("a", b"one"), (b"one", "a"))),
        *(ids_of(*pictures) for pictures in ((b"one", b"two"), (b"onet", b"wo"), (b"one",), ())),
    ]
    again = [pb.GenerateRequest.FromString(request.SerializeToString()) for request in requests]
    digests = [digest_of(request) for request in requests]
    assert digests == [digest_of(request) for request in again]
    assert len(set(digests)) == len(requests)
    assert not any(b"two" in request.SerializeToString() for request in requests)


@given(st.binary(max_size=60))
def test_any_message_is_read_or_refused(wire: bytes) -> None:
    message = pb.GenerateRequest()
    with contextlib.suppress(DecodeError, InvalidArgumentError):
        message.ParseFromString(wire)
        parse(message)


def test_an_empty_text_is_told_to_be_empty_and_not_missing() -> None:
    with pytest.raises(InvalidArgumentError, match="must not be empty"):
        parse(with_sampling(stop=["a", ""]))
    with pytest.raises(InvalidArgumentError, match="must be set"):
        parse(pb.GenerateRequest())
