"""How much of a prompt a step takes in beside others' next tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.calls import num_calls
from tests.decoder_service.engine_fakes import Host, make_request

NUM_MIXED = 3


def streaming_host(
    count: int,
    *,
    max_num_batched_tokens: int = 64,
    max_num_requests: int = 8,
    max_num_mixed_tokens: int | None = NUM_MIXED,
    max_step_stretch: float | None = None,
) -> Host:
    """So many requests get a token in every step, and have had two."""
    host = Host(
        num_blocks=200,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_requests=max_num_requests,
        max_num_mixed_tokens=max_num_mixed_tokens,
        max_step_stretch=max_step_stretch,
    )
    for index in range(count):
        host.submit(make_request(f"s{index}", 2, arrival=index, max_tokens=60))
    chunks(host, "s0", steps=2)
    return host


def chunks(host: Host, name: str, *, steps: int) -> list[int]:
    """Tokens that a request gets in each of the next steps."""
    for _ in range(steps):
        host.step()
    return [batch.get(name, 0) for batch in host.runner.batches[-steps:]]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_prompt_has_few_tokens_in_a_step_beside_next_tokens_and_more_beside_more_of_them(count: int) -> None:
    host = streaming_host(count)
    host.submit(make_request("long", 60, arrival=9))
    first, *later = chunks(host, "long", steps=3)
    assert first == NUM_MIXED + count
    # One that runs has the token that every running request has, besides.
    assert later == [NUM_MIXED + count + 1] * 2
    host.run()
    host.check_outputs()


def test_without_the_limit_a_prompt_has_the_whole_step() -> None:
    host = streaming_host(2, max_num_mixed_tokens=None)
    host.submit(make_request("long", 60, arrival=9))
    assert chunks(host, "long", steps=1) == [60]


def test_where_nobody_gets_a_next_token_prompts_have_the_whole_step() -> None:
    host = streaming_host(0)
    for index in range(2):
        host.submit(make_request(f"r{index}", 100, arrival=index))
    host.step()
    assert host.runner.batches[-1] == {"r0": 64}
    host.step()
    assert host.runner.batches[-1] == {"r0": 36, "r1": 28}


def test_prompts_that_came_while_a_stream_began_are_taken_in_whole_beside_its_second_token_and_not_its_third() -> None:
    host = streaming_host(0)
    host.submit(make_request("first", 2, arrival=0, max_tokens=60))
    host.step()
    for index in range(4):
        host.submit(make_request(f"r{index}", 20, arrival=1 + index, max_tokens=60))
    host.step()
    assert host.runner.batches[-1] == {"first": 1, "r0": 20, "r1": 20, "r2": 20, "r3": 3}
    host.step()
    assert host.runner.batches[-1] == {"first": 1, "r0": 1, "r1": 1, "r2": 1, "r3": 1 + NUM_MIXED + 4}
    host.run()
    host.check_outputs()


def test_where_steps_have_a_limit_in_time_it_holds_beside_second_tokens_too() -> None:
    host = streaming_host(0, max_step_stretch=1.5)
    host.submit(make_request("first", 2, arrival=0, max_tokens=60))
    host.step()
    host.submit(make_request("long", 60, arrival=1))
    host.step()
    assert host.runner.batches[-1] == {"first": 1, "long": 2}
    host.run()
    host.check_outputs()


def test_one_stream_of_some_length_is_enough_for_the_limit() -> None:
    host = streaming_host(1)
    host.engine.set_paused("s0", paused=True)
    host.submit(make_request("long", 60, arrival=9))
    assert chunks(host, "long", steps=1) == [60]
    host.engine.set_paused("s0", paused=False)
    host.submit(make_request("next", 60, arrival=10))
    assert chunks(host, "next", steps=1) == [NUM_MIXED + 2]


def test_more_prompts_have_more_tokens_together_so_that_a_queue_of_them_does_not_grow_for_ever() -> None:
    host = streaming_host(1)
    for index in range(3):
        host.submit(make_request(f"long{index}", 60, arrival=1 + index))
    host.step()
    assert host.runner.batches[-1] == {"s0": 1, "long0": 3 * (NUM_MIXED + 1)}


@pytest.mark.parametrize(("stretch", "expected"), [(1.01, 1), (1.3, 2), (2.0, 7), (3.5, 17), (9.0, 21)])
def test_a_step_is_stretched_no_further_however_many_prompts_there_are(stretch: float, expected: int) -> None:
    host = streaming_host(4, max_step_stretch=stretch)
    for index in range(3):
        host.submit(make_request(f"long{index}", 60, arrival=4 + index))
    host.step()
    assert sum(host.runner.batches[-1].values()) == 4 + expected
    host.run()
    host.check_outputs()


def test_prompts_without_a_place_in_the_batch_do_not_count() -> None:
    host = streaming_host(2, max_num_requests=3)
    for index in range(50):
        host.submit(make_request(f"long{index}", 30, arrival=2 + index, max_tokens=2))
    host.step()
    assert host.runner.batches[-1] == {"s0": 1, "s1": 1, "long0": NUM_MIXED + 2}


def test_the_limit_never_lifts_the_budget_of_a_step() -> None:
    host = streaming_host(2, max_num_batched_tokens=8, max_num_mixed_tokens=100)
    host.submit(make_request("long", 60, arrival=9))
    host.step()
    assert sum(host.runner.batches[-1].values()) == 8


def test_a_higher_class_has_the_tokens_first() -> None:
    host = streaming_host(1)
    host.submit(make_request("low", 60, arrival=1, priority=-1))
    host.step()
    host.submit(make_request("high", 5, arrival=2, priority=1))
    host.step()
    assert host.runner.batches[-1] == {"s0": 1, "low": 1 + 3, "high": 5}


def test_short_prompts_behind_a_long_one_make_the_step_longer_only_by_their_part_of_it() -> None:
    host = streaming_host(1)
    host.submit(make_request("long", 40, arrival=1))
    host.submit(make_request("short", 8, arrival=2))
    host.step()
    assert host.runner.batches[-1] == {"s0": 1, "long": NUM_MIXED + 1}
    for index in range(5):
        host.submit(make_request(f"short{index}", 8, arrival=3 + index))
    host.step()
    # 36 tokens are left of the long one, and 48 of the short ones.
    assert host.runner.batches[-1] == {"s0": 1, "long": 1 + (36 + 48) * (NUM_MIXED + 1) // 36}


@pytest.mark.parametrize(("arrival", "priority", "tenant"), [(9, 0, b"a"), (1, -1, b"a"), (1, 0, b"")])
def test_a_long_prompt_whose_turn_comes_later_makes_others_count_for_no_less(
    arrival: int, priority: int, tenant: bytes
) -> None:
    """As it came later, is of a lower class, or its tenant got more: so the short ones go on as without it."""
    host = streaming_host(1)
    shorts = [make_request(f"short{index}", 6, arrival=2 + index, tenant=b"a") for index in range(3)]
    long = make_request("long", 60, arrival=arrival, priority=priority, tenant=tenant)
    for request in sorted([*shorts, long], key=lambda request: request.arrival):
        host.submit(request)
    host.step()
    assert sum(host.runner.batches[-1].values()) == 1 + 4 * (NUM_MIXED + 1)
    assert host.runner.batches[-1]["short0"] == 6


def test_tokens_of_a_prompt_that_are_cached_do_not_count() -> None:
    host = streaming_host(1)
    host.submit(make_request("first", 60, arrival=1, text="same", max_tokens=1))
    chunks(host, "first", steps=20)
    host.submit(make_request("long", 60, arrival=2))
    host.submit(make_request("again", 60, arrival=3, text="same"))
    host.step()
    assert host.runner.batches[-1] == {"s0": 1, "long": NUM_MIXED + 1}


def test_a_prompt_longer_than_the_largest_step_counts_as_one_of_that_length() -> None:
    host = streaming_host(1)
    host.submit(make_request("huge", 400, arrival=1))
    host.submit(make_request("long", 64, arrival=2))
    host.step()
    assert host.runner.batches[-1] == {"s0": 1, "huge": 2 * (NUM_MIXED + 1)}


def test_a_mixed_step_costs_the_same_however_many_prompts_wait_behind_the_one_that_it_goes_on_with() -> None:
    def calls_in_a_step(num_waiting: int) -> int:
        host = streaming_host(2, max_num_requests=5)
        host.submit(make_request("long", 90, arrival=2))
        host.step()
        for index in range(num_waiting):
            host.engine.submit(make_request(f"next{index}", 30, arrival=3 + index))
        calls = num_calls(host.engine.step)
        assert host.runner.batches[-1].keys() == {"s0", "s1", "long"}
        return calls

    assert calls_in_a_step(10) == calls_in_a_step(5_000) > 0


def test_a_limit_below_one_is_refused_as_prompts_would_never_begin() -> None:
    with pytest.raises(ValueError, match="max_num_mixed_tokens"):
        SchedulerConfig(max_num_batched_tokens=8, max_num_requests=2, max_model_len=9, max_num_mixed_tokens=0)
    with pytest.raises(ValueError, match="max_step_stretch"):
        SchedulerConfig(max_num_batched_tokens=8, max_num_requests=2, max_model_len=9, max_step_stretch=1.0)


@settings(max_examples=30)
@given(
    num_mixed=st.sampled_from([None, 1, 2, 7]),
    stretch=st.sampled_from([None, 1.1, 1.5, 4.0]),
    prompts=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    tenants=st.lists(st.sampled_from([b"a", b"b"]), min_size=6, max_size=6),
)
def test_no_limit_changes_a_token_or_keeps_a_prompt_from_its_end(
    num_mixed: int | None, stretch: float | None, prompts: list[int], tenants: list[bytes]
) -> None:
    """`check_outputs` compares with each request alone; the streams go on all the time."""
    host = streaming_host(2, max_num_mixed_tokens=num_mixed, max_step_stretch=stretch)
    for index, length in enumerate(prompts):
        host.submit(make_request(f"p{index}", length, arrival=10 + index, tenant=tenants[index], max_tokens=3))
    chunks(host, "p0", steps=50)
    assert set(host.live) == {"s0", "s1"}
    host.run()
    host.check_outputs()
