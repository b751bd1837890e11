"""What requests try makes steps fewer and changes nothing that anybody is told, however it turns out."""

from collections.abc import Sequence

import pytest

from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import ScheduledBatch, StepResult
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.speculation import drafting
from decoder_service.speculation.drafting import LEAST_READ
from decoder_service.speculation.prompt_lookup import PromptLookup
from tests.decoder_service.engine_fakes import Host, make_request, tokens_alone
from tests.decoder_service.runner_fakes import Entry, FakeRunner, repeated_token


def same_token(entries: Sequence[Entry], index: int = 0) -> int:
    """The last one again: all that is tried from the fourth token on is right."""
    return entries[-1][0] + 0 * index


def new_token(entries: Sequence[Entry], index: int = 0) -> int:
    """The same three tokens again and again, and each time another one behind them, for 160 tokens."""
    place = len(entries) % 4
    return (3, 1, 4)[place] if place < 3 else 10 + (len(entries) // 4 + index) % 40


def run_one(num_speculative_tokens: int, max_tokens: int = 40, **limits: int | None) -> Host:
    host = Host(
        num_speculative_tokens=num_speculative_tokens,
        next_token=same_token,
        **limits,  # type: ignore[arg-type]
    )
    host.submit(make_request("r", 4, max_tokens=max_tokens))
    host.run()
    host.check_outputs()
    return host


def test_a_completion_that_repeats_itself_takes_a_fraction_of_the_steps() -> None:
    assert run_one(0).engine.stats().num_steps == 40
    stats = run_one(7).engine.stats()
    assert stats.num_steps < 14
    assert stats.num_draft_tokens == stats.num_accepted_tokens == 40 - stats.num_steps
    assert stats.num_drafts < stats.num_steps


@pytest.mark.parametrize("max_tokens", range(1, 20))
def test_nothing_is_tried_behind_the_last_token_that_is_wanted(max_tokens: int) -> None:
    host = run_one(7, max_tokens)
    assert sum(batch["r"] for batch in host.runner.batches) == 4 + max_tokens - 1


@pytest.mark.parametrize("max_tokens", range(2, 9))
def test_the_last_token_that_is_wanted_is_tried_as_those_before_it_are(max_tokens: int) -> None:
    host = Host(num_speculative_tokens=7, next_token=same_token)
    request = make_request("r", 4, max_tokens=max_tokens)
    request.prompt_token_ids = (5, 5, 5, 5)
    host.submit(request)
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_steps == 2


def test_a_step_has_no_more_tokens_than_its_budget() -> None:
    host = run_one(30, 100, max_num_batched_tokens=9, num_blocks=60)
    assert max(batch["r"] for batch in host.runner.batches) == 9


@pytest.mark.parametrize(("stretch", "most"), [(None, 12), (1.5, 6), (3.0, 12)])
def test_by_what_is_tried_a_step_takes_twice_as_long_at_most(stretch: float | None, most: int) -> None:
    host = Host(
        num_speculative_tokens=30,
        next_token=same_token,
        num_doubling_tokens=12,
        max_num_mixed_tokens=12,
        max_step_stretch=stretch,
        max_num_batched_tokens=100,
        num_blocks=100,
    )
    for index in range(3):
        host.submit(make_request(f"r{index}", 4, max_tokens=60, arrival=index))
    host.run()
    host.check_outputs()
    steps = [sum(batch.values()) - len(batch) for batch in host.runner.batches[1:]]
    assert max(steps) == most
    assert steps.count(most) > 5


def test_a_prompt_beside_leaves_less_to_try() -> None:
    host = Host(
        num_speculative_tokens=30,
        next_token=same_token,
        num_doubling_tokens=12,
        max_num_batched_tokens=100,
        num_blocks=100,
    )
    host.submit(make_request("a", 4, max_tokens=250))
    for _ in range(6):
        host.step()
    beside = {}
    for index, length in enumerate((90, 4)):
        host.submit(make_request("bc"[index], length, max_tokens=1, arrival=1 + index))
        host.step()
        beside[length] = host.runner.batches[-1]
    assert beside[90] == {"a": 1, "b": 90}
    assert beside[4] == {"a": 1 + 12 - 3, "c": 4}
    host.run()
    host.check_outputs()


def test_an_end_token_within_what_was_tried_ends_the_completion_there() -> None:
    host = Host(num_speculative_tokens=7, next_token=repeated_token, num_blocks=60)
    expected = {}
    for index in range(30):
        probe = make_request(f"r{index}", 3, max_tokens=30)
        alone = tokens_alone(probe, next_token=repeated_token)
        ends = frozenset({alone[-1]})
        host.submit(make_request(f"r{index}", 3, max_tokens=30, end_token_ids=ends, arrival=index))
        expected[f"r{index}"] = alone[: alone.index(alone[-1]) + 1]
    host.run(max_steps=2000)
    host.check_outputs()
    assert host.engine.stats().num_accepted_tokens > 20
    assert {name: outcome.token_ids for name, outcome in host.outcomes.items()} == expected


def test_what_would_be_right_behind_an_end_does_not_count() -> None:
    host = Host(num_speculative_tokens=4, next_token=lambda entries, _: len(entries) % 7, num_blocks=60)
    request = make_request("r", 21, max_tokens=30, end_token_ids=frozenset({3}))
    request.prompt_token_ids = tuple(range(7)) * 3
    host.submit(request)
    host.run()
    assert host.outcomes["r"].token_ids == [0, 1, 2, 3]
    stats = host.engine.stats()
    assert (stats.num_draft_tokens, stats.num_accepted_tokens) == (4, 2)
    assert request.num_charged_tokens == 21 + 3


def test_who_was_right_most_has_the_room_first() -> None:
    def next_token(entries: Sequence[Entry], _: int) -> int:
        """Of one request always the last one again, of the other four times."""
        is_first, place = entries[0][0] == 1, len(entries)
        return place // 5 if is_first and place % 5 == 0 else entries[-1][0]

    host = Host(num_speculative_tokens=30, next_token=next_token, num_doubling_tokens=5, num_blocks=150)
    for index, name in enumerate("ab"):
        request = make_request(name, 1, max_tokens=150, arrival=index)
        request.prompt_token_ids = (1 + index,)
        host.submit(request)
    for _ in range(40):
        host.step()
    assert {batch["b"] for batch in host.runner.batches[15:24]} == {6}
    assert {batch["a"] for batch in host.runner.batches[15:24]} == {1}
    host.run()


def test_who_is_wrong_again_and_again_hardly_tries_any_more() -> None:
    host = Host(num_speculative_tokens=7, next_token=new_token, num_blocks=400, num_doubling_tokens=4)
    host.submit(make_request("r", 3, max_tokens=150))
    host.run()
    host.check_outputs()
    stats = host.engine.stats()
    assert stats.num_accepted_tokens == 0
    assert 5 <= stats.num_drafts <= 15  # Of 36 times that it could have.
    assert stats.num_draft_tokens <= 20


def test_who_was_wrong_for_long_finds_out_that_its_text_begins_to_repeat_itself() -> None:
    def next_token(entries: Sequence[Entry], index: int = 0) -> int:
        return (new_token if len(entries) < 150 else same_token)(entries, index)

    host = Host(num_speculative_tokens=7, next_token=next_token, num_blocks=400, num_doubling_tokens=4)
    host.submit(make_request("r", 3, max_tokens=400))
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_accepted_tokens > 100


def test_the_more_requests_run_the_less_is_tried() -> None:
    tried = []
    for num_requests in (1, 2, 4):
        host = Host(
            num_speculative_tokens=30,
            next_token=same_token,
            num_blocks=100,
            max_num_batched_tokens=200,
            num_doubling_tokens=4,
        )
        for index in range(num_requests):
            host.submit(make_request(f"r{index}", 4, max_tokens=40, arrival=index))
        host.run()
        host.check_outputs()
        tried.append(host.engine.stats().num_drafts / num_requests)
    assert tried[0] < tried[1]  # As each time less is tried, it is tried more often.
    assert tried[2] == 0


def test_nobody_gives_way_for_what_another_one_tries() -> None:
    host = Host(num_speculative_tokens=7, next_token=same_token, num_blocks=12, block_size=2, max_num_requests=2)
    for index in range(2):
        host.submit(make_request(f"r{index}", 4, max_tokens=8, arrival=index))
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_preemptions == 0
    assert host.engine.stats().num_accepted_tokens > 0


def test_where_no_block_is_free_nothing_is_tried() -> None:
    host = Host(num_speculative_tokens=7, next_token=same_token, num_blocks=11, block_size=1, max_num_requests=1)
    host.submit(make_request("r", 4, max_tokens=7))
    host.run()
    host.check_outputs()


def test_what_was_wrong_leaves_nothing_to_clear() -> None:
    host = Host(num_speculative_tokens=7, next_token=new_token, num_blocks=200, block_size=1)
    host.runner.clear_error = RuntimeError("planted")
    host.submit(make_request("r", 3, max_tokens=100))
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_draft_tokens > 0
    assert host.runner.clear_error is not None, "blocks were cleared"


def test_completions_that_part_in_the_middle_of_a_block_try_tokens_on_copies_of_it() -> None:
    host = Host(num_speculative_tokens=7, next_token=same_token, block_size=4, num_blocks=60)
    request = make_request("r", 6, max_tokens=30, n=3)
    request.prompt_token_ids = (5,) * 6  # There is something to try from the first step on.
    host.submit(request)
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_accepted_tokens > 20


def test_what_is_not_finite_is_computed_again_without_trying() -> None:
    host = Host(num_speculative_tokens=7, next_token=same_token, num_blocks=60)
    host.runner.has_poisonous_drafts = True
    for index in range(3):
        host.submit(make_request(f"r{index}", 4, max_tokens=30, arrival=index))
    host.run()
    host.check_outputs()
    assert {outcome.end for outcome in host.outcomes.values()} == {"length"}
    stats = host.engine.stats()
    assert (stats.num_preemptions, stats.num_accepted_tokens) == (3, 0)


def test_long_prompts_of_many_are_read_a_few_at_a_time_and_nobody_else_waits_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[int] = []
    read = PromptLookup.read

    def counted(lookup: PromptLookup, request: Request, most: int) -> int:
        reads.append(read(lookup, request, most))
        return reads[-1]

    monkeypatch.setattr(PromptLookup, "read", counted)
    monkeypatch.setattr(drafting, "MOST_READ", 300)
    host = Host(
        num_speculative_tokens=4,
        next_token=same_token,
        num_blocks=1000,
        max_num_requests=6,
        max_num_batched_tokens=20_000,
        max_model_len=8000,
    )
    host.submit(make_request("first", 4, max_tokens=60))
    for _ in range(5):
        host.step()
    for index in range(5):
        host.submit(make_request(f"r{index}", 500, max_tokens=20, arrival=1 + index))
    most, tried = 0, 0
    while host.engine.has_work:
        reads.clear()
        host.step()
        most = max(most, sum(reads))
        is_reading = len(reads) == 6 and reads.count(0) < 5
        tried += is_reading and host.runner.batches[-1].get("first", 0) > 1
    host.check_outputs()
    assert 300 < most <= 300 + 6 * LEAST_READ
    assert tried > 3
    assert host.engine.stats().num_drafts > 10


def test_a_completion_that_ended_with_another_one_is_not_computed_again() -> None:
    def next_token(entries: Sequence[Entry], index: int = 0) -> int:
        """Of the first completion always a new token, so that it tries nothing."""
        return same_token(entries) if index else len(entries)

    host = Host(num_speculative_tokens=7, next_token=next_token, num_blocks=60)
    host.submit(make_request("r", 4, max_tokens=40, n=2))
    for _ in range(6):
        host.step()
    host.runner.not_finite.add("r")
    host.step()
    assert host.engine.stats().num_draft_tokens > 0
    assert [host.outcome("r", index).end for index in range(2)] == ["NUMERIC_ERROR"] * 2
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_preemptions == 0


def test_a_step_that_fails_is_computed_again_without_trying() -> None:
    host = Host(num_speculative_tokens=7, next_token=same_token, num_blocks=60)
    for index in range(3):
        host.submit(make_request(f"r{index}", 4, max_tokens=30, arrival=index))
    for _ in range(6):
        host.step()
    host.runner.late_error = RuntimeError("planted")
    before = len(host.runner.batches)
    host.step()
    failed, again = host.runner.batches[before : before + 2]
    assert max(failed.values()) > 1
    assert set(again.values()) == {1}
    host.run()
    host.check_outputs()
    assert {outcome.end for outcome in host.outcomes.values()} == {"length"}


def test_who_makes_steps_fail_by_what_it_tries_does_so_once() -> None:
    class Runner(FakeRunner):
        """Cannot compute what is tried."""

        num_failures = 0

        def execute(self, batch: ScheduledBatch) -> StepResult:
            if batch.num_draft_tokens:
                self.num_failures += 1
                raise RuntimeError("planted")
            return super().execute(batch)

    config = SchedulerConfig(max_num_batched_tokens=40, max_num_requests=3, max_model_len=200, num_speculative_tokens=8)
    runner = Runner(num_blocks=90, block_size=4, next_token=same_token)
    engine = Engine(config=config, num_blocks=90, block_size=4, runner=runner)
    for index in range(3):
        engine.submit(make_request(f"r{index}", 4, max_tokens=40, arrival=index))
    ends = []
    while engine.has_work:
        ends += [token.finish_reason for token in engine.step().tokens if token.finish_reason]
        engine.check_integrity()
    assert ends == [FinishReason.LENGTH] * 3
    assert 1 <= runner.num_failures <= 3


@pytest.mark.parametrize(
    "steered", [{"repetition_penalty": 1.2}, {"min_tokens": 2}, {"logprobs": 1}, {"bad_token_sequences": ((7,),)}]
)
def test_who_needs_each_token_before_the_next_tries_nothing(steered: dict[str, object]) -> None:
    request = make_request("r", 4)
    request = Request(
        request_id="r",
        prompt_token_ids=request.prompt_token_ids,
        sampling=SamplingParams(max_tokens=30, **steered),  # type: ignore[arg-type]
        arrival=0,
    )
    host = Host(num_speculative_tokens=7, next_token=same_token)
    host.submit(request)
    host.run()
    assert host.engine.stats().num_drafts == 0
    assert len(host.outcomes["r"].token_ids) == 30


class Only:
    """A language in which one token may come, and nothing else."""

    has_failed = False

    def __init__(self, token_id: int, *forced: int) -> None:
        self._token_id = token_id
        self._forced = forced

    def fork(self) -> "Only":
        return self

    def mask(self, address: int, num_bytes: int) -> None:
        raise AssertionError("the runner of these tests asks for no masks")

    def take(self, token_id: int) -> bool:
        return token_id == self._token_id

    def forced(self) -> Sequence[int]:
        return self._forced


def host_within(matcher: Only, *, num_doubling_tokens: int = 200) -> Host:
    """One that has a request for a completion which repeats one token."""
    host = Host(num_speculative_tokens=7, next_token=same_token, num_blocks=60, num_doubling_tokens=num_doubling_tokens)
    request = make_request("r", 4, max_tokens=30)
    request.matcher = matcher
    host.submit(request)
    return host


def test_what_a_language_would_refuse_is_not_tried() -> None:
    host = host_within(Only(0))
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_draft_tokens == 0


def test_what_is_forced_is_tried_from_the_first_token_on_whatever_was_right_before() -> None:
    host = host_within(Only(36, 36, 36))
    host.run()
    host.check_outputs()
    assert [batch["r"] for batch in host.runner.batches[:4]] == [4, 3, 3, 3]
    host = host_within(Only(36, 35))
    host.run()
    host.check_outputs()
    stats = host.engine.stats()
    assert stats.num_drafts == stats.num_draft_tokens == 28
    assert stats.num_accepted_tokens == 0


def test_what_is_forced_is_not_tried_where_it_costs_as_much_as_a_next_token() -> None:
    host = host_within(Only(36, 36), num_doubling_tokens=1)
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_drafts == 0


def test_who_gave_up_does_not_even_try_what_is_forced() -> None:
    host = host_within(Only(36, 36, 36))
    host.runner.has_poisonous_drafts = True
    host.run()
    host.check_outputs()
    assert host.engine.stats().num_preemptions == 1


def test_what_was_right_is_charged_to_its_tenant() -> None:
    class Runner:
        """Always tells the same token."""

        def copy(self, copies: object) -> None:
            raise AssertionError

        def clear(self, block_ids: object) -> None:
            raise AssertionError

        def execute(self, batch: ScheduledBatch) -> StepResult:
            return StepResult(token_ids=[5] * len(batch.sampled))

    config = SchedulerConfig(max_num_batched_tokens=40, max_num_requests=2, max_model_len=200, num_speculative_tokens=8)
    engine = Engine(config=config, num_blocks=60, block_size=4, runner=Runner())
    request = make_request("r", 4, max_tokens=60)
    engine.submit(request)
    while engine.has_work:
        engine.step()
        assert request.num_charged_tokens == request.num_computed_tokens or not engine.has_work
    assert request.num_charged_tokens == 63
    assert engine.stats().num_accepted_tokens > 40
