"""The life of a request: every one ends once, with the tokens it would have alone, and leaves nothing."""

import math
from dataclasses import replace

import pytest

from common.errors import AlreadyExistsError, InvalidArgumentError, UnavailableError
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.request_status import FinishReason, RequestStatus
from decoder_service.engine.step import NoToken, StepResult
from decoder_service.sampling.sampling_params import SamplingParams
from tests.decoder_service.engine_fakes import Host, make_features, make_request, tokens_alone


def test_a_request_gets_the_tokens_it_would_have_alone() -> None:
    host = Host()
    for index in range(6):
        host.submit(make_request(f"r{index}", 3 + 5 * index, 4, 2, arrival=index, max_tokens=3 + index))
    host.run()
    assert {outcome.end for outcome in host.outcomes.values()} == {"length"}
    host.check_outputs()


def test_preempted_request_yields_the_same_tokens() -> None:
    host = Host(num_blocks=10)
    for index in range(4):
        host.submit(make_request(f"r{index}", 3, 5, 2, arrival=index, max_tokens=20))
    host.run()
    assert host.engine.stats().num_preemptions > 0
    host.check_outputs()


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_prompt_larger_than_the_cache_is_refused_at_once(excess: int) -> None:
    host = Host(num_blocks=4, block_size=4)
    request = make_request("a", 16 - 4 + excess, max_tokens=4)
    if excess > 0:
        with pytest.raises(InvalidArgumentError, match="16 is the most"):
            host.submit(request)
        host.check_idle()
    else:
        host.submit(request)
        host.run()
        host.check_outputs()


def test_a_prompt_longer_than_the_model_is_refused_at_once() -> None:
    host = Host(max_model_len=10)
    with pytest.raises(InvalidArgumentError) as caught:
        host.submit(make_request("a", 8, max_tokens=3))
    assert caught.value.metadata == {"limit": "10", "got": "11"}


def test_outputs_that_outgrow_the_cache_together_all_end() -> None:
    """Each fits the cache alone, up to its last block, and all start together."""
    host = Host(num_blocks=8, block_size=4, max_num_requests=4)
    for index in range(4):
        host.submit(make_request(f"r{index}", 2, arrival=index, max_tokens=30))
    host.run()
    assert host.engine.stats().num_preemptions > 0
    host.check_outputs()


def test_decode_is_never_starved_by_arriving_prompts() -> None:
    host = Host(num_blocks=1000, max_num_requests=8)
    host.submit(make_request("decoding", 1, max_tokens=50))
    host.step()
    for index in range(1, 50):
        host.submit(make_request(f"r{index}", 40, arrival=index, max_tokens=1))
        assert "decoding" in {token.request_id for token in host.step().tokens}


def test_a_stalled_request_gives_way_and_still_ends() -> None:
    host = Host(num_blocks=8, block_size=4)
    stalled = host.submit(make_request("stalled", 1, 10, 0, 10, arrival=0))
    host.arrive(ImageRef("stalled", 0))
    host.step()
    host.submit(make_request("text", 12, arrival=1, max_tokens=12))
    while "text" in host.live:
        host.step()
    assert stalled.num_preemptions == 1
    host.run()
    host.check_outputs()


def test_two_requests_do_not_take_the_blocks_from_each_other_for_ever() -> None:
    """The cache holds one of them, and first images always arrive before second ones."""
    host = Host(num_blocks=6, block_size=4, feature_budget=20)
    for index in range(2):
        host.submit(make_request(f"r{index}", 0, 10, 0, 10, arrival=index, max_tokens=2))
    host.run()
    host.check_outputs()


def test_feature_memory_and_blocks_do_not_wait_for_each_other() -> None:
    """There is memory for one image at a time, and blocks for one request."""
    host = Host(num_blocks=5, block_size=4, feature_budget=8, max_num_requests=2)
    host.submit(make_request("two", 1, 4, 0, 4, arrival=0))
    for index in range(1, 4):
        host.submit(make_request(f"r{index}", 0, 8, arrival=index))
    host.run(last_image_first=True)
    host.check_outputs()


@pytest.mark.parametrize(
    ("ends", "stops", "ignore_eos", "expected"),
    [
        (True, False, False, FinishReason.STOP),
        (True, False, True, FinishReason.LENGTH),
        (False, True, True, FinishReason.STOP),
        (False, False, False, FinishReason.LENGTH),
    ],
)
def test_end_tokens_stop_unless_ignored_and_stop_tokens_always(
    ends: bool, stops: bool, ignore_eos: bool, expected: FinishReason
) -> None:
    third = tokens_alone(make_request("a", 5, max_tokens=6))[2]
    request = make_request(
        "a",
        5,
        max_tokens=6,
        end_token_ids=frozenset({third} if ends else ()),
        stop_token_ids=frozenset({third} if stops else ()),
        ignore_eos=ignore_eos,
    )
    host = Host()
    host.submit(request)
    tokens = [token for _ in range(6) for token in host.step().tokens]
    assert tokens[-1].finish_reason is expected
    assert tokens[-1].stop_token_id == (third if expected is FinishReason.STOP else None)
    assert len(tokens) == (3 if expected is FinishReason.STOP else 6)
    assert all(token.finish_reason is None for token in tokens[:-1])
    host.check_idle()


def test_blocks_are_free_in_the_step_that_ends_a_request() -> None:
    host = Host()
    host.submit(make_request("a", 5, max_tokens=1))
    host.step()
    host.check_idle()


@pytest.mark.parametrize("state", ["awaiting features", "ready", "computing", "stalled", "decoding", "preempted"])
def test_abort_leaves_nothing_in_any_state(state: str) -> None:
    host = Host(max_num_requests=1, max_num_batched_tokens=8)
    request = host.submit(make_request("a", 2, 9, 1, 3, arrival=0))
    beside = make_request("beside", 3, arrival=1)
    if state != "awaiting features":
        host.arrive(ImageRef("a", 0))
    if state in ("computing", "stalled", "decoding", "preempted"):
        host.step()
    if state in ("stalled", "decoding", "preempted"):
        host.step()
        assert request.num_schedulable_tokens == 0
    if state == "decoding":
        host.arrive(ImageRef("a", 1))
        host.step()
        assert request.output_token_ids
    host.submit(beside)
    if state == "preempted":
        host.step()
        assert request.num_preemptions == 1
    host.abort("a")
    assert request.status is RequestStatus.FINISHED
    host.run()
    host.check_outputs()
    assert host.outcomes["beside"].end == "length"


def test_abort_of_an_unknown_or_ended_request_does_nothing() -> None:
    host = Host()
    host.submit(make_request("a", 3, max_tokens=1))
    host.step()
    assert host.engine.abort("a") == []
    assert host.engine.abort("never") == []
    host.check_idle()


def test_a_failed_request_gives_its_features_back_and_is_reported_once() -> None:
    host = Host()
    request = host.submit(make_request("a", 1, 4, 1, 4))
    assert host.engine.features_arrived("a", 1, make_features(request, 1))
    error = UnavailableError("VISION_UNAVAILABLE", "no vision replica answers")
    assert host.engine.fail("a", error) == [ImageRef("a", 1)]
    assert host.engine.fail("a", error) == []
    assert host.engine.has_work
    assert host.engine.step().failed == [("a", error)]
    assert host.engine.step().failed == []


def test_not_finite_logits_end_that_request_alone() -> None:
    host = Host()
    for index, name in enumerate(("a", "nan", "b")):
        host.submit(make_request(name, 3, 4, arrival=index, max_tokens=5))
    host.runner.not_finite.add("nan")
    host.run()
    assert [host.outcomes[name].end for name in ("a", "nan", "b")] == ["length", "NUMERIC_ERROR", "length"]
    host.check_outputs()


def test_a_runner_that_gives_too_few_tokens_fails_its_batch() -> None:
    host = Host()
    host.submit(make_request("a", 3))
    host.runner.execute = lambda batch: StepResult(token_ids=[])  # type: ignore[method-assign]
    assert [error.reason for _, error in host.step().failed] == ["STEP_FAILED"]
    host.check_idle()


def test_a_request_that_rules_out_every_token_ends_with_its_own_fault() -> None:
    host = Host()
    host.submit(make_request("a", 3))
    host.runner.execute = lambda batch: StepResult(token_ids=[NoToken.NONE_ALLOWED])  # type: ignore[method-assign]
    ((_, error),) = host.step().failed
    assert isinstance(error, InvalidArgumentError)
    assert (error.reason, error.field) == ("NO_TOKEN_LEFT", "sampling")
    host.check_idle()


def test_a_name_is_taken_until_its_request_has_ended() -> None:
    host = Host()
    host.submit(make_request("a", 3, max_tokens=1))
    with pytest.raises(AlreadyExistsError):
        host.engine.submit(make_request("a", 3))
    host.step()
    host.engine.submit(make_request("a", 3))


def test_features_that_nobody_needs_stay_with_the_caller() -> None:
    host = Host(max_num_batched_tokens=8)
    request = host.submit(make_request("a", 1, 4, 1, 4, 1))
    features = make_features(request, 0)
    host.arrive(ImageRef("a", 0))
    assert not host.engine.features_arrived("a", 0, features)
    assert host.step().consumed == [ImageRef("a", 0)]
    assert not host.engine.features_arrived("a", 0, features)
    assert not host.engine.features_arrived("never", 0, features)


def test_a_request_is_first_scheduled_once() -> None:
    host = Host(num_blocks=8, block_size=4)
    for index in range(3):
        host.submit(make_request(f"r{index}", 2, arrival=index, max_tokens=30))
    first_scheduled = []
    while host.live:
        first_scheduled += host.step().first_scheduled
    assert host.engine.stats().num_preemptions > 0
    assert first_scheduled == ["r0", "r1", "r2"]


def test_stats_tell_how_full_the_engine_is() -> None:
    host = Host(num_blocks=16, block_size=4)
    host.submit(make_request("a", 5))
    host.submit(make_request("b", 1, 4, arrival=1))
    host.step()
    stats = host.engine.stats()
    assert (stats.num_waiting, stats.num_running) == (1, 1)
    assert (stats.num_free_blocks, stats.num_blocks) == (14, 16)
    assert (stats.num_steps, stats.num_batched_tokens, stats.num_preemptions) == (1, 5, 0)


def test_near_ties_of_all_steps_are_counted() -> None:
    host = Host()
    host.runner.num_near_ties = 2
    host.submit(make_request("a", 5, max_tokens=3))
    while host.live:
        host.step()
    assert host.engine.stats().num_near_ties == 6


def test_an_idle_step_does_nothing() -> None:
    host = Host()
    host.submit(make_request("a", 0, 4))
    assert not host.engine.has_work
    assert not host.step().tokens
    assert host.runner.batches == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("logit_bias", ((1, math.nan),)),
        ("bad_token_sequences", ((1,), ())),
        ("min_tokens", -1),
        ("seed", 2**64),
    ],
)
def test_sampling_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        replace(SamplingParams(max_tokens=1), **{name: value})  # type: ignore[arg-type]


def test_an_error_is_not_heard_by_the_next_request_of_that_name() -> None:
    host = Host()
    host.submit(make_request("a", 4))
    host.fail("a", UnavailableError("VISION_UNAVAILABLE", "no vision replica answers"))
    with pytest.raises(AlreadyExistsError):  # Its caller has not heard of the end yet.
        host.engine.submit(make_request("a", 4, arrival=1))
    host.abort("a")
    host.submit(make_request("a", 4, arrival=2))
    assert host.step().failed == []
    host.run()
    assert host.outcomes["a"].end == "length"
    host.check_outputs()


def test_tokens_can_be_read_across_prompt_and_output() -> None:
    request = make_request("a", 4)
    request.output_token_ids.extend((11, 12, 13))
    everything = [*request.prompt_token_ids, 11, 12, 13]
    for start in range(8):
        for stop in range(start, 8):
            assert list(request.token_ids(start, stop)) == everything[start:stop]


def test_placeholder_ranges_must_be_in_order_and_inside_the_prompt() -> None:
    request = make_request("a", 1, 4, 1, 4)
    first, second = request.placeholders
    for placeholders in ((second, first), (first, first)):
        with pytest.raises(ValueError, match="in order"):
            replace(request, placeholders=placeholders)
    with pytest.raises(ValueError, match="ends at 10"):
        replace(request, prompt_token_ids=request.prompt_token_ids[:9])
    with pytest.raises(ValueError, match="at least one token"):
        replace(request, prompt_token_ids=(), placeholders=())
