"""A step that fails costs those that it must, and nobody else a token."""

import logging
import math
from collections.abc import Sequence

import pytest

from common.errors import DiptychError
from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.device_errors import DeviceLostError, DeviceMemoryError
from decoder_service.engine.failing_clears import FailingClears
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.scheduling.step_plan import STEPS_BEFORE_GROWTH
from tests.decoder_service.engine_fakes import Host, make_request


def busy_host(num_requests: int, *, max_tokens: int = 6) -> Host:
    """Requests of which each has its first token."""
    host = Host(num_blocks=1000, max_num_requests=num_requests + 1, max_num_batched_tokens=1000)
    for index in range(num_requests):
        host.submit(make_request(f"r{index}", 3 + index % 5, arrival=index, max_tokens=max_tokens))
    host.step()
    return host


def ends(host: Host) -> dict[str, str | None]:
    return {name: outcome.end for name, outcome in host.outcomes.items()}


@pytest.mark.parametrize("culprits", [set(), {"r0"}, {"r6"}, {"r2", "r3"}, {"r0", "r4", "r6"}])
def test_only_the_culprits_of_a_step_fail_and_their_neighbours_tokens_are_the_same(culprits: set[str]) -> None:
    host = busy_host(7)
    host.runner.culprits = culprits
    host.run()
    assert {name for name, end in ends(host).items() if end == "STEP_FAILED"} == culprits
    assert {end for name, end in ends(host).items() if name not in culprits} == {"length"}
    host.check_outputs()


def test_a_culprit_that_is_new_costs_its_neighbours_nothing_either() -> None:
    host = busy_host(3)
    host.submit(make_request("new", 2, 4, 3, arrival=3))
    host.runner.culprits.add("new")
    host.arrive(ImageRef("new", 0))
    output = host.step()
    assert [request_id for request_id, _ in output.failed] == ["new"]
    assert output.consumed == [ImageRef("new", 0)]
    assert {token.request_id for token in output.tokens} == {"r0", "r1", "r2"}
    host.run()
    host.check_outputs()


def test_a_fault_that_does_not_come_again_costs_nobody_anything() -> None:
    host = busy_host(4)
    host.runner.error = RuntimeError("once")
    host.run()
    assert set(ends(host).values()) == {"length"}
    host.check_outputs()


def test_one_culprit_among_many_is_found_in_a_few_tries() -> None:
    host = busy_host(64)
    host.runner.culprits.add("r37")
    num_tries = len(host.runner.batches)
    host.step()
    assert len(host.runner.batches) - num_tries <= 1 + 2 * math.log2(64)


def test_what_failed_is_in_the_log_and_not_in_the_status(caplog: pytest.LogCaptureFixture) -> None:
    host = busy_host(1)
    host.runner.error = RuntimeError("secret path")
    host.runner.culprits.add("r0")
    with caplog.at_level(logging.ERROR):
        ((_, error),) = host.step().failed
    assert error.reason == "STEP_FAILED"
    assert "secret" not in error.message
    assert "secret path" in caplog.text
    assert error.metadata["error_id"] in {record.__dict__["error_id"] for record in caplog.records}


def test_a_lost_device_is_not_tried_again() -> None:
    host = busy_host(4)
    host.runner.error = DeviceLostError()
    with pytest.raises(DeviceLostError):
        host.engine.step()


@pytest.mark.parametrize("most_tokens", [1, 3, 10, 100])
def test_without_memory_for_a_batch_everybody_still_ends_with_the_same_tokens(most_tokens: int) -> None:
    host = Host(num_blocks=1000, max_num_requests=8, max_num_batched_tokens=200)
    host.runner.most_tokens = most_tokens
    for index in range(8):
        host.submit(make_request(f"r{index}", 20 + index, 4, 1, arrival=index))
    host.run()
    assert set(ends(host).values()) == {"length"}
    host.check_outputs()


def test_batches_stay_small_for_a_while_after_memory_ran_out_and_grow_again() -> None:
    host = busy_host(8, max_tokens=4 * STEPS_BEFORE_GROWTH)
    host.runner.most_tokens = 4
    host.step()
    num_tries = len(host.runner.batches)
    host.step()
    assert len(host.runner.batches) == num_tries + 1, "the next batch passes at once"
    assert host.engine.stats().num_running <= 4
    assert host.engine.stats().num_preemptions >= 4
    host.runner.most_tokens = None
    for _ in range(2 * STEPS_BEFORE_GROWTH):
        host.step()
    assert host.engine.stats().num_running == 8


@pytest.mark.parametrize("clears", [True, False])
@pytest.mark.parametrize("way", ["aborted", "preempted", "failed"])
def test_nan_of_a_request_that_is_gone_before_it_shows_harms_nobody(
    way: str, clears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control clears nothing: there the next owner of the blocks is harmed."""
    host = Host(num_blocks=8, block_size=4, max_num_batched_tokens=12, max_num_requests=2)
    if not clears:
        monkeypatch.setattr(host.runner, "clear", lambda block_ids: None)
    host.runner.poisoned.add("poisoned")
    host.submit(make_request("poisoned", 26, priority=-1))
    host.step()
    if way == "aborted":
        host.abort("poisoned")
    if way == "failed":
        host.runner.culprits.add("poisoned")
    others = [host.submit(make_request(f"r{index}", 9 + index, arrival=1 + index)) for index in range(3)]
    if way == "preempted":
        host.step()
        host.abort("poisoned")
        assert host.requests["poisoned"].num_preemptions == 1
    host.run()
    assert ({host.outcomes[other.request_id].end for other in others} == {"length"}) == clears
    if clears:
        host.check_outputs()


@pytest.mark.parametrize(
    ("error", "end"), [(RuntimeError("planted"), "STEP_FAILED"), (DeviceMemoryError(), "DEVICE_MEMORY")]
)
def test_blocks_that_could_not_be_cleared_cost_those_that_were_to_write_there_alone(error: Exception, end: str) -> None:
    host = Host(num_blocks=14, block_size=4, max_num_batched_tokens=24, max_num_requests=3)
    before = host.submit(make_request("before", 5, max_tokens=12))
    host.runner.poisoned.add("poisoned")
    host.submit(make_request("poisoned", 26, arrival=1))
    host.step()
    host.abort("poisoned")
    host.runner.clear_error = error
    host.submit(make_request("into it", 12, arrival=2))
    host.step()
    after = host.submit(make_request("after", 30, arrival=3))
    host.run()
    assert ends(host) == {"before": "length", "poisoned": "aborted", "into it": end, "after": "length"}
    assert (before.num_preemptions, after.num_preemptions) == (0, 0)
    host.check_outputs()


def test_blocks_whose_clearing_goes_on_failing_are_given_once_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And one traceback, under the number that all of them are told."""
    caplog.set_level("INFO")
    host = Host(num_blocks=14, block_size=4, max_num_batched_tokens=24, max_num_requests=3)
    given: list[list[BlockId]] = []
    errors: list[DiptychError] = []
    clear = host.runner.clear

    def watched(block_ids: Sequence[BlockId]) -> None:
        given.append(list(block_ids))
        clear(block_ids)

    monkeypatch.setattr(host.runner, "clear", watched)
    host.runner.poisoned.add("poisoned")
    host.submit(make_request("poisoned", 26))
    host.step()
    host.abort("poisoned")
    for index in range(5):
        host.runner.clear_error = RuntimeError("planted")
        host.submit(make_request(f"into it {index}", 12, arrival=1 + index))
        errors += [error for _, error in host.step().failed]
    host.submit(make_request("after", 30, arrival=9))
    host.run()
    assert list(ends(host).values()) == ["aborted", *["STEP_FAILED"] * 5, "length"]
    assert len(given) == 6
    assert all(len(set(block_ids)) == len(block_ids) for block_ids in given)
    host.check_outputs()
    told = [vars(record) for record in caplog.records if record.message.startswith("clearing")]
    assert [(each["message"], each.get("num_failures")) for each in told] == [
        ("clearing failed", None),
        ("clearing still fails", 2),
        ("clearing still fails", 4),
        ("clearing works again", 5),
    ]
    assert [each["exc_info"] is not None for each in told] == [True, False, False, False]
    assert {each["error_id"] for each in told} == {"clear-1"}
    assert [(each["error_type"], each["error"]) for each in told[1:3]] == [("RuntimeError", "planted")] * 2
    assert [error.metadata["error_id"] for error in errors] == ["clear-1"] * 5


def test_another_error_in_a_row_of_failing_clears_gets_a_number_and_a_traceback_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    clearing = FailingClears()
    numbers = []
    for each in (ValueError("a"), ValueError("a"), RuntimeError("a"), RuntimeError("b"), RuntimeError("b")):
        try:
            raise each
        except (ValueError, RuntimeError) as error:
            numbers.append(clearing.failed(error, 1))
    clearing.succeeded()
    assert numbers == ["clear-1", "clear-1", "clear-2", "clear-3", "clear-3"]
    told = [vars(record) for record in caplog.records]
    assert [(each["message"], each["error_id"], each["exc_info"] is not None) for each in told] == [
        ("clearing failed", "clear-1", True),
        ("clearing still fails", "clear-1", False),
        ("clearing failed", "clear-2", True),
        ("clearing failed", "clear-3", True),
        ("clearing still fails", "clear-3", False),
        ("clearing works again", "clear-3", False),
    ]


def test_an_error_that_reads_otherwise_each_time_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clearing = FailingClears()
    for row in range(2):
        numbers = {clearing.failed(RuntimeError(f"at {index}"), 1) for index in range(1000)}
        clearing.succeeded()
        assert numbers == {f"clear-{8 * row + number}" for number in range(1, 9)}
    told = [vars(record) for record in caplog.records]
    assert sum(each["message"] == "clearing failed" for each in told) == 16
    assert len(told) < 40
    assert {each["error_id"] for each in told} == {f"clear-{number}" for number in range(1, 17)}


def test_a_device_that_is_lost_where_blocks_are_cleared_is_not_tried_again() -> None:
    host = busy_host(2)
    host.runner.poisoned.add("r0")
    host.step()
    host.runner.clear_error = DeviceLostError()
    with pytest.raises(DeviceLostError):
        host.engine.step()


def test_nan_in_a_step_that_fails_harms_nobody_in_blocks_that_were_clean() -> None:
    """The last block of a request was finite when the step began that spoilt it."""
    host = Host(num_blocks=4, block_size=4)
    host.submit(make_request("spoilt", 5))
    host.step()
    host.runner.poisoned.add("spoilt")
    host.runner.culprits.add("spoilt")
    host.step()
    assert host.outcomes["spoilt"].end == "STEP_FAILED"
    host.submit(make_request("next", 12, arrival=1))
    host.run()
    host.check_outputs()
    assert host.outcomes["next"].end == "length"


def test_a_block_is_copied_once_though_its_next_owner_writes_to_it_in_a_step_that_fails() -> None:
    """The other completion gives way in the step in which the first one needs a copy of the block they share."""
    host = Host(num_blocks=18, block_size=3, max_num_requests=2, hash_block=None)
    host.submit(make_request("parted", 4, n=2, max_tokens=6))
    host.step()
    host.runner.culprits.add("culprit")
    host.submit(make_request("culprit", 7, arrival=1, priority=1))
    shared = host.requests["parted"].block_table[-1]
    host.step()
    assert shared not in host.requests["parted"].block_table
    assert host.outcomes["culprit"].end == "STEP_FAILED"
    host.run()
    host.check_outputs()
    assert host.outcomes["parted"].end == "length"


def test_copying_that_fails_costs_only_the_request_that_needs_the_copy() -> None:
    host = Host(num_blocks=18, block_size=3, max_num_requests=3)
    host.submit(make_request("parted", 4, n=2, max_tokens=6))
    host.submit(make_request("other", 4, arrival=1, text="two", max_tokens=6))
    host.step()
    host.runner.copy_error = RuntimeError("planted")
    host.step()
    assert host.outcomes["parted"].end == "STEP_FAILED"
    host.run()
    host.check_outputs()
    assert host.outcomes["other"].end == "length"
