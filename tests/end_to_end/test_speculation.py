"""A pair whose decoder tries tokens ahead tells what one tells that does not, and says how often it was right."""

from collections.abc import Iterator

import pytest

from common.client.client import DiptychClient
from common.client.messages import raw_text
from tests.end_to_end.questions import question
from tests.end_to_end.services import Service, decoder_service

TEXT = raw_text("red circle, blue square, red circle, blue square, red circle")


@pytest.fixture(scope="module")
def speculating(vision: Service) -> Iterator[Service]:
    with decoder_service("--num-speculative-tokens", "6", "--num-blocks", "256", vision=vision.address) as service:
        service.wait_serving()
        yield service


@pytest.fixture
def other(speculating: Service) -> Iterator[DiptychClient]:
    with DiptychClient(speculating.address) as client:
        yield client


def test_text_and_pictures_are_answered_alike(client: DiptychClient, other: DiptychClient) -> None:
    for index in range(3):
        prompt, answer = question("count", index)
        assert other.complete(prompt, timeout=60).text == answer
        told, expected = (
            each.complete(prompt, timeout=60, max_tokens=60, ignore_eos=True).token_ids for each in (other, client)
        )
        assert told == expected
    for seed, temperature in enumerate((0.0, 0.3, 1.0)):
        told, expected = (
            each.complete(
                TEXT, timeout=60, max_tokens=80, ignore_eos=True, temperature=temperature, seed=seed
            ).token_ids
            for each in (other, client)
        )
        assert told == expected


def test_what_was_tried_and_right_is_counted(other: DiptychClient, speculating: Service) -> None:
    names = [f"diptych_spec_decode_num_{kind}_total" for kind in ("drafts", "draft_tokens", "accepted_tokens")]
    before = [speculating.metric(name) for name in names]
    steps = speculating.metric("diptych_engine_steps_total")
    done = other.complete(TEXT, timeout=60, max_tokens=80, ignore_eos=True)
    assert len(done.token_ids) == done.usage.completion_tokens == 80
    drafts, tried, accepted = (speculating.metric(name) - old for name, old in zip(names, before, strict=True))
    assert 0 < drafts < tried
    assert 0 < accepted <= tried
    assert speculating.metric("diptych_engine_steps_total") - steps <= 82 - accepted


def test_a_stop_text_ends_a_completion_within_what_was_tried(client: DiptychClient, other: DiptychClient) -> None:
    whole = client.complete(TEXT, timeout=60, max_tokens=80, ignore_eos=True).text
    for place in range(4, len(whole) - 4, max(1, len(whole) // 12)):
        stop = whole[place : place + 3]
        told, expected = (
            each.complete(TEXT, timeout=60, max_tokens=80, ignore_eos=True, stop=[stop]) for each in (other, client)
        )
        assert told.text == expected.text == whole[: whole.index(stop)]
        assert told.finish_reason == expected.finish_reason


def test_a_stream_is_told_in_order(other: DiptychClient) -> None:
    responses = list(other.generate(TEXT, timeout=60, max_tokens=80, ignore_eos=True))
    assert [response.seq for response in responses] == list(range(len(responses)))
    assert sum(len(response.delta.token_ids) for response in responses) == 80


def test_structured_answers_are_the_same_and_try_what_their_schema_forces(
    client: DiptychClient, other: DiptychClient, speculating: Service
) -> None:
    names = ("largest_object", "number_of_objects")
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }
    before = speculating.metric("diptych_spec_decode_num_accepted_tokens_total")
    for index in range(3):
        prompt, _ = question("count", index)
        told, expected = (
            each.complete(prompt, timeout=60, max_tokens=80, json_schema=schema, temperature=0.5 * index, seed=1)
            for each in (other, client)
        )
        assert told.token_ids == expected.token_ids
        assert told.finish_reason == expected.finish_reason
    accepted = speculating.metric("diptych_spec_decode_num_accepted_tokens_total") - before
    assert accepted > 30
