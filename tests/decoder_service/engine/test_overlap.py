"""While a step runs the next one is planned, and nobody hears or loses anything by it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from decoder_service.cache.block_manager import BlockManager, IntegrityError
from decoder_service.engine.device_errors import DeviceLostError, DeviceMemoryError
from decoder_service.engine.request import Request
from decoder_service.engine.step import StepOutput
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.lookahead import LookAhead
from tests.decoder_service.engine_fakes import Host, make_request, tokens_alone


def running_host(num_requests: int, *, num_tokens: int = 5, max_tokens: int = 12, num_blocks: int = 100) -> Host:
    """Requests of which each has its first token, and gets its second one right now."""
    host = Host(num_blocks=num_blocks, max_num_requests=max(4, num_requests), max_num_batched_tokens=100, overlap=True)
    for index in range(num_requests):
        host.submit(make_request(f"r{index}", num_tokens, arrival=index, max_tokens=max_tokens))
    host.step()
    return host


def num_ahead(host: Host) -> int:
    return host.engine.stats().num_steps_ahead


def free_blocks(host: Host) -> int:
    return host.engine.stats().num_free_blocks


def test_every_step_but_the_first_begins_before_the_one_before_is_accounted_for() -> None:
    host = running_host(3)
    host.run()
    stats = host.engine.stats()
    assert (stats.num_steps, stats.num_steps_ahead) == (12, 11)
    host.check_outputs()


def test_a_step_tells_the_tokens_of_one_step_and_in_the_same_order() -> None:
    plain, host = running_host(3), running_host(3)
    plain.engine._pipeline._launcher = None
    told = [[step.tokens for step in (each.step() for _ in range(11))] for each in (plain, host)]
    assert told[0] == told[1]
    assert all(len(tokens) == 3 for tokens in told[1])


def test_last_tokens_that_are_known_to_come_cost_no_step_more() -> None:
    host = Host(num_blocks=100, overlap=True)
    for index, max_tokens in enumerate([3, 5, 9]):
        host.submit(make_request(f"r{index}", 4, arrival=index, max_tokens=max_tokens))
    host.run()
    assert sum(len(batch) for batch in host.runner.batches) == 3 + 5 + 9


def test_a_stop_token_costs_one_token_that_nobody_hears_of() -> None:
    host = running_host(0)
    lone = make_request("a", 5, max_tokens=12)
    stop = tokens_alone(lone)[4]
    host.submit(make_request("a", 5, max_tokens=12, stop_token_ids=frozenset({stop})))
    host.run()
    host.check_outputs()
    assert host.outcomes["a"].end == "stop"
    num_told = len(host.outcomes["a"].token_ids)
    assert sum(len(batch) for batch in host.runner.batches) == num_told + 1


@pytest.mark.parametrize("keeps", [True, False])
def test_blocks_of_who_leaves_are_free_once_nothing_is_written_to_them(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control gives them back at once."""
    if not keeps:
        monkeypatch.setattr(LookAhead, "keep", lambda self, request: False)
    host = running_host(2, num_tokens=8)
    owned = host.engine.count_owned_blocks()
    host.abort("r0")
    assert (host.engine.count_owned_blocks() == owned) == keeps
    assert host.engine.count_owned_blocks() + free_blocks(host) == 100
    tokens = host.step().tokens
    assert {token.request_id for token in tokens} == {"r1"}
    assert host.engine.count_owned_blocks() == owned // 2
    host.run()
    host.check_outputs()


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("clears", [True, False])
def test_nan_that_is_computed_for_who_has_left_harms_nobody(
    clears: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control clears nothing. The NaN is behind what the next owner of the block has written there."""
    host = running_host(1, num_tokens=6, max_tokens=30, num_blocks=12)
    host.runner.poisoned.add("r0")
    host.abort("r0")
    if fails:
        host.runner.late_error = RuntimeError("planted")
    if not clears:
        monkeypatch.setattr(host.runner, "clear", lambda block_ids: None)
    host.step()
    others = [host.submit(make_request(f"r{index}", 1, arrival=index)) for index in range(1, 5)]
    host.run()
    assert ({host.outcomes[other.request_id].end for other in others} == {"length"}) == clears
    if clears:
        host.check_outputs()


def test_a_step_that_fails_takes_the_one_behind_it_along_and_nobody_loses_a_token() -> None:
    """At each place of a block, so that the step behind it needed a block more or did not."""
    for num_tokens in range(4, 8):
        host = running_host(3, num_tokens=num_tokens)
        host.runner.error = RuntimeError("once")
        host.run()
        host.check_outputs()
        assert {outcome.end for outcome in host.outcomes.values()} == {"length"}


def test_a_block_for_a_step_that_is_forgotten_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The books notice where it is not."""

    def forget(self: LookAhead, batch: object) -> None:
        for each in batch.requests:  # type: ignore[attr-defined]
            each.request.num_ahead_tokens -= 1

    monkeypatch.setattr(LookAhead, "cancel", forget)
    host = running_host(3, num_tokens=7)
    host.runner.error = RuntimeError("once")
    with pytest.raises(IntegrityError):
        host.step()
    monkeypatch.undo()
    for request in host.requests.values():
        host.engine._blocks.trim(request.block_table, request.num_computed_tokens)


@pytest.mark.parametrize("error", ["error", "late_error", "launch_error"])
@pytest.mark.parametrize("kind", [RuntimeError, DeviceMemoryError])
def test_whenever_a_step_fails_once_everybody_ends_with_their_own_tokens(error: str, kind: type[Exception]) -> None:
    for num_steps in range(6):
        host = running_host(4)
        for _ in range(num_steps):
            host.step()
        setattr(host.runner, error, kind("planted"))
        host.run()
        host.check_outputs()
        assert {outcome.end for outcome in host.outcomes.values()} == {"length"}


@pytest.mark.parametrize("culprits", [{"r0"}, {"r3"}, {"r1", "r2"}])
def test_only_the_culprits_of_a_step_that_was_planned_ahead_fail(culprits: set[str]) -> None:
    host = running_host(4)
    host.step()
    host.runner.culprits = culprits
    host.run()
    assert {name for name, outcome in host.outcomes.items() if outcome.end == "STEP_FAILED"} == culprits
    host.check_outputs()


def test_who_has_left_is_not_tried_again_and_its_name_may_be_another_s_by_then() -> None:
    host = running_host(1)
    host.abort("r0")
    host.runner.error = RuntimeError("planted")
    host.outcomes.clear()
    host.submit(make_request("r0", 5, arrival=1))
    assert host.step().failed == []
    host.run()
    assert host.outcomes["r0"].end == "length"
    host.check_outputs()


def test_a_row_that_is_not_finite_fails_alone_and_is_computed_once_more_at_most() -> None:
    host = running_host(3)
    host.runner.not_finite.add("r1")
    output = host.step()
    assert [(name, error.reason) for name, error in output.failed] == [("r1", "NUMERIC_ERROR")]
    host.run()
    host.check_outputs()
    assert host.runner.batches[-1].keys() == {"r0", "r2"}


@pytest.mark.parametrize("waits", [True, False])
def test_blocks_that_must_be_cleared_are_nobody_s_in_a_step_that_is_planned_ahead(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are cleared between two steps, when nothing runs. The control does not wait for that."""
    if not waits:
        monkeypatch.setattr(BlockManager, "has_unclean", False)
    host = running_host(3, num_tokens=6, max_tokens=30)
    host.runner.poisoned.add("r1")
    while "r1" in host.live:
        host.step()
    if waits:
        host.run()
        host.check_outputs()
    else:
        with pytest.raises(IntegrityError):
            host.run()
        host.engine._blocks.take_unclean()


def test_a_device_that_is_lost_while_a_step_runs_is_not_tried_again() -> None:
    host = running_host(2)
    host.runner.error = DeviceLostError()
    with pytest.raises(DeviceLostError):
        host.engine.step()


def test_who_is_paused_gets_what_was_computed_already_and_no_more() -> None:
    host = running_host(2)
    host.pause("r0")
    told = [token.request_id for _ in range(5) for token in host.step().tokens]
    assert told.count("r0") == 1
    assert told.count("r1") == 5
    host.resume("r0")
    assert "r0" in {token.request_id for _ in range(2) for token in host.step().tokens}
    host.run()
    host.check_outputs()


def test_the_prefix_cache_never_holds_a_token_that_was_computed_in_vain() -> None:
    """A prompt that goes on with the token behind a stop token finds no block with it."""
    lone = make_request("a", 5, max_tokens=12)
    expected = tokens_alone(lone)
    host = Host(num_blocks=100, block_size=1, overlap=True)
    host.submit(make_request("a", 5, max_tokens=12, stop_token_ids=frozenset({expected[4]})))
    host.run()
    num_told = len(host.outcomes["a"].token_ids)
    ids = (*lone.prompt_token_ids, *expected)
    longer = Request(request_id="b", prompt_token_ids=ids, sampling=SamplingParams(max_tokens=1), arrival=1)
    host.engine.submit(longer)
    # The last token that was told has no key of its own: it was to be computed in vain.
    assert longer.num_cached_tokens == 5 + num_told - 1
    host.engine.abort("b")


NOT_ALONE: dict[str, Callable[[Request], Request]] = {
    "penalties": lambda request: replace_sampling(request, frequency_penalty=0.5),
    "a bias": lambda request: replace_sampling(request, logit_bias=((3, 1.0),)),
    "log probabilities": lambda request: replace_sampling(request, logprobs=0),
    "more completions": lambda request: replace_sampling(request, n=2),
}


def replace_sampling(request: Request, **changes: object) -> Request:
    request.sampling = replace(request.sampling, **changes)  # type: ignore[arg-type]
    return request


@pytest.mark.parametrize("why", NOT_ALONE)
def test_a_step_waits_for_the_one_before_where_anybody_in_it_needs_the_host(why: str) -> None:
    host = running_host(2)
    before = num_ahead(host)
    host.submit(NOT_ALONE[why](make_request("new", 5, arrival=5, max_tokens=3)))
    assert not new_tokens(host.step())  # This one ran already.
    assert new_tokens(host.step())
    assert num_ahead(host) == before
    host.run()
    host.check_outputs()
    assert num_ahead(host) > before


def new_tokens(output: StepOutput) -> list[int]:
    return [token.token_id for token in output.tokens if token.request_id == "new"]


def test_who_could_begin_begins_in_the_next_step_that_has_not_begun() -> None:
    host = running_host(2)
    host.submit(make_request("new", 5, arrival=5))
    assert [len(host.step().first_scheduled) for _ in range(2)] == [0, 1]


def test_a_place_that_becomes_free_is_taken_at_once_though_steps_are_planned_ahead() -> None:
    steps = []
    for overlap in (False, True):
        host = Host(num_blocks=100, max_num_requests=2, overlap=overlap)
        for index in range(6):
            host.submit(make_request(f"r{index}", 3, arrival=index, max_tokens=4 + index % 2))
        host.run()
        host.check_outputs()
        steps.append(host.engine.stats().num_steps)
    assert steps[0] == steps[1]


def test_many_who_wait_without_a_place_do_not_stop_it() -> None:
    host = running_host(4, max_tokens=10)
    for index in range(4, 9):
        host.submit(make_request(f"r{index}", 5, arrival=index))
    before = num_ahead(host)
    for _ in range(5):
        host.step()
    assert num_ahead(host) == before + 5
    host.run()
    host.check_outputs()


def test_blocks_that_run_out_are_nobody_s_while_a_step_runs() -> None:
    """Those that give way do so between steps; in the end all have their own tokens."""
    host = running_host(4, num_tokens=6, max_tokens=14, num_blocks=14)
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_preemptions > 0
    assert num_ahead(host) > 0


@pytest.mark.parametrize("restores", [True, False])
def test_who_waits_trusts_what_it_trusted_though_somebody_looked_whether_it_could_begin(
    restores: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image was cached when it came, and is so no more. The books notice where the look leaves a trace."""
    host = Host(num_blocks=14, block_size=4, max_num_requests=3, max_num_batched_tokens=100, overlap=True)
    host.submit(make_request("first", 4, 4, 4, text="one", pictures=["p"], max_tokens=1))
    host.run()
    host.submit(make_request("running", 10, arrival=1, max_tokens=26))
    host.step()
    host.submit(make_request("waiting", 4, 4, 17, text="one", pictures=["p"], arrival=2, max_tokens=2))
    waiting = host.requests["waiting"]
    assert waiting.num_cached_tokens == 12
    host.engine._blocks.forget([block for block in range(14)])  # type: ignore[misc]
    if not restores:
        monkeypatch.setattr(host.engine._scheduler.ahead, "_could_begin", lambda request: _look(host, request))
        with pytest.raises(IntegrityError):
            host.step()
        monkeypatch.undo()
        return
    host.step()
    assert num_ahead(host) > 0
    host.run()
    host.check_outputs()


def _look(host: Host, request: Request | None) -> bool:
    if request is not None:
        host.engine._prefix_cache.find(request)
    return False
