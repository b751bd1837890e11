"""Several completions of one prompt: computed once, owned together, and each on its own from there."""

import pytest

from common.errors import AlreadyExistsError, InvalidArgumentError
from decoder_service.adapters.adapter_ref import AdapterRef
from decoder_service.cache.block_manager import IntegrityError
from decoder_service.engine.device_errors import DeviceMemoryError
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.scheduling.forks import make_forks
from tests.decoder_service.engine_fakes import Host, make_request, tokens_alone


def test_the_prompt_is_computed_once_and_each_completion_is_its_own() -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    request = host.submit(make_request("a", 10, max_tokens=6, n=5))
    host.run()
    host.check_outputs()
    assert len({tuple(tokens_alone(request, index)) for index in range(5)}) == 5
    assert sum(sum(batch.values()) for batch in host.runner.batches[:1]) == 10
    assert host.engine.stats().num_steps == 6


def test_only_the_last_block_is_copied_and_its_last_owner_writes_in_place() -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    host.submit(make_request("a", 10, max_tokens=6, n=3))
    host.step()
    stats = host.engine.stats()
    assert stats.num_blocks - stats.num_free_blocks == 3
    host.step()
    assert stats.num_blocks - host.engine.stats().num_free_blocks == 5
    host.run()


def test_a_prompt_that_fills_its_blocks_is_not_copied() -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    host.submit(make_request("a", 8, max_tokens=2, n=3))
    host.step()
    stats = host.engine.stats()
    assert stats.num_blocks - stats.num_free_blocks == 2
    host.run()
    host.check_outputs()


def test_completions_of_one_token_need_no_step_of_their_own() -> None:
    host = Host(num_blocks=8, max_num_requests=8)
    host.submit(make_request("a", 10, max_tokens=1, n=4))
    output = host.step()
    assert [(token.index, token.is_last) for token in output.tokens] == [
        (0, False), (1, False), (2, False), (3, True),
    ]  # fmt: skip
    host.check_outputs()
    host.check_idle()


def test_a_request_waits_until_all_its_completions_may_run() -> None:
    host = Host(num_blocks=60, max_num_requests=4)
    host.submit(make_request("a", 4, max_tokens=8))
    host.submit(make_request("b", 4, arrival=1, max_tokens=8, n=4))
    host.submit(make_request("c", 4, arrival=2, max_tokens=2))
    while "a" in host.live:
        host.step()
        assert host.engine.stats().num_running <= 1
    host.run()
    host.check_outputs()
    assert max(len(batch) for batch in host.runner.batches) == 1, "nothing overtakes the one at the head"


def test_more_completions_than_may_run_or_fit_are_refused() -> None:
    host = Host(num_blocks=8, max_num_requests=4)
    with pytest.raises(InvalidArgumentError, match="at most 4"):
        host.submit(make_request("a", 4, n=5))
    with pytest.raises(InvalidArgumentError, match="in each of 3 completions"):
        host.submit(make_request("a", 4, max_tokens=12, n=3))
    host.submit(make_request("a", 4, max_tokens=8, n=3))
    host.run()
    host.check_outputs()


def test_completions_that_outgrow_the_cache_give_way_one_by_one_and_come_back() -> None:
    host = Host(num_blocks=14, max_num_requests=4)
    host.submit(make_request("a", 9, 6, 3, max_tokens=9, n=3))
    host.submit(make_request("b", 4, arrival=1, max_tokens=20))
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_preemptions > 0


def test_a_completion_that_came_back_fetches_its_images_for_itself() -> None:
    host = Host(num_blocks=9, max_num_requests=3, hash_block=None)
    host.submit(make_request("a", 3, 6, 0, max_tokens=9, n=2))
    host.arrive(ImageRef("a", 0))
    wanted = []
    for _ in range(200):
        if not host.live:
            break
        if len(host.requests) == 1 and host.outcomes["a"].token_ids:
            host.submit(make_request("b", 8, arrival=-1, max_tokens=12))
        wanted += host.step().wanted
        for ref in list(host.in_flight):
            host.arrive(ref)
    assert (wanted[0].request_id, wanted[0].index, wanted[0].image_indices) == ("a", 1, (0,))
    host.check_outputs()
    host.check_idle()


def test_one_completion_ends_and_the_others_go_on() -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    host.submit(make_request("a", 10, max_tokens=6, n=3))
    host.step()
    for index in (0, 2):
        host.end("a", index)
        with pytest.raises(AlreadyExistsError):
            host.submit(make_request("a", 4))
    host.run()
    assert [host.outcomes[name].end for name in ("a", "a/1", "a/2")] == ["ended", "length", "ended"]
    host.check_outputs()
    host.submit(make_request("a", 4))
    host.run()


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_a_request_that_is_aborted_takes_all_its_completions_with_it(num_steps: int) -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    host.submit(make_request("a", 10, max_tokens=6, n=3))
    for _ in range(num_steps):
        host.step()
    host.abort("a")
    host.check_idle()


@pytest.mark.parametrize(("num_steps", "name"), [(0, "a"), (2, "a/1")])
def test_a_completion_that_is_not_finite_ends_its_request_once_and_no_other(num_steps: int, name: str) -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    host.submit(make_request("a", 10, max_tokens=6, n=3))
    host.submit(make_request("b", 10, arrival=1, max_tokens=6))
    for _ in range(num_steps):
        host.step()
    host.runner.not_finite.add(name)
    host.run()
    assert {host.outcomes[each].end for each in ("a", "a/1", "a/2")} == {"NUMERIC_ERROR"}
    assert host.outcomes["b"].end == "length"
    host.check_outputs()


def test_a_step_that_raises_ends_a_request_once() -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    host.submit(make_request("a", 10, max_tokens=6, n=3))
    host.step()
    host.submit(make_request("b", 5, arrival=1, max_tokens=6, n=2))
    host.step()
    host.runner.culprits.add("a")
    output = host.step()
    assert [request_id for request_id, _ in output.failed] == ["a"]
    assert {token.request_id for token in output.tokens} == {"b"}
    host.run()
    host.check_outputs()


@pytest.mark.parametrize("fault", [None, RuntimeError("late"), DeviceMemoryError(), "culprit"])
def test_a_step_tried_again_copies_what_it_copied_before_though_the_last_other_owner_gave_way(
    fault: Exception | str | None,
) -> None:
    """The block that one completion copies would be free for the newcomer that makes the other one give way."""
    host = Host(num_blocks=8, max_num_requests=2)
    host.submit(make_request("a", 6, max_tokens=5, n=2))
    host.step()
    newcomer = host.submit(make_request("new", 8, arrival=1, priority=1))
    if isinstance(fault, Exception):
        host.runner.late_error = fault
    elif fault is not None:
        host.runner.culprits.add("new")
    output = host.step()
    assert host.engine.stats().num_preemptions == 1
    assert output.first_scheduled == ["new"]
    host.run()
    assert host.outcome("a", 0).end == host.outcome("a", 1).end == "length"
    assert host.outcomes[newcomer.request_id].end == ("STEP_FAILED" if fault == "culprit" else "length")
    host.check_outputs()


def test_nan_that_a_failed_step_left_in_the_block_of_another_completion_harms_nobody() -> None:
    """The one that fails writes to its copy, the other in place; both end, and the next request gets their blocks."""
    host = Host(num_blocks=4)
    host.submit(make_request("a", 2, max_tokens=5, n=2))
    host.step()
    host.runner.poisoned.add("a")
    host.runner.culprits.add("a")
    host.step()
    assert host.outcomes["a"].end == "STEP_FAILED"
    host.submit(make_request("next", 1, arrival=1, max_tokens=1))
    host.run()
    host.check_outputs()
    assert host.outcomes["next"].end == "length"


def test_the_prompt_that_a_request_leaves_is_found_by_the_next_one() -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    for arrival in range(2):
        host.submit(make_request(f"r{arrival}", 10, text="same", arrival=arrival, max_tokens=3, n=3))
        host.run()
    host.check_outputs()
    stats = host.engine.stats()
    assert (stats.num_queried_tokens, stats.num_hit_tokens) == (20, 8)


def test_a_completion_that_owns_blocks_before_it_begins_is_found() -> None:
    host = Host(num_blocks=40, max_num_requests=8)
    request = host.submit(make_request("a", 30, max_tokens=6, n=2))
    host.step()
    request.forks[0].block_table.append(request.block_table[0])
    with pytest.raises(IntegrityError, match="began before it"):
        host.engine.check_integrity()
    request.forks[0].block_table.clear()
    host.run()


def test_all_completions_are_computed_with_the_adapter_that_was_asked_for() -> None:
    request = make_request("a", 5, n=3)
    request.adapter = AdapterRef(1, b"of cats")
    assert [fork.adapter for fork in make_forks(request)] == [request.adapter] * 2
