"""What priorities, tenants and spare blocks make of the order: policy on a virtual clock."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.engine.step import BlockCopy, ScheduledBatch, StepResult
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.decoder_service.engine_fakes import Host, make_request


def running(host: Host) -> Counter[bytes]:
    """How many of each tenant's requests run."""
    return Counter(host.requests[name].tenant for name in host.live if host.requests[name].block_table)


def test_a_higher_class_takes_the_place_of_the_latest_of_the_lowest() -> None:
    host = Host(max_num_requests=3, num_blocks=100)
    for index, priority in enumerate((0, -1, -1)):
        host.submit(make_request(f"r{index}", 5, arrival=index, priority=priority, max_tokens=20))
    host.step()
    host.submit(make_request("high", 5, arrival=3, priority=1))
    output = host.step()
    assert {token.request_id for token in output.tokens} == {"r0", "r1", "high"}
    assert [host.requests[f"r{index}"].num_preemptions for index in range(3)] == [0, 0, 1]
    host.run()
    host.check_outputs()


def test_a_higher_class_takes_the_blocks_it_needs_and_no_more() -> None:
    host = Host(max_num_requests=8, num_blocks=14, block_size=4, max_num_batched_tokens=64)
    for index in range(4):
        host.submit(make_request(f"r{index}", 9, arrival=index, priority=-1, max_tokens=9))
    host.step()
    host.submit(make_request("large", 14, arrival=4, max_tokens=1))
    output = host.step()
    assert "large" in {token.request_id for token in output.tokens}
    assert [host.requests[f"r{index}"].num_preemptions for index in range(4)] == [0, 0, 0, 1]
    host.run()
    host.check_outputs()


def test_a_higher_class_that_could_not_run_anyway_takes_nothing() -> None:
    host = Host(max_num_requests=8, num_blocks=12, block_size=4)
    host.submit(make_request("equal", 30, arrival=0, max_tokens=8))
    host.submit(make_request("low", 6, arrival=1, priority=-1, max_tokens=9))
    for _ in range(3):
        host.step()
    host.submit(make_request("large", 40, arrival=2, max_tokens=8))
    host.step()
    assert host.requests["low"].num_preemptions == 0
    host.run()
    host.check_outputs()


def test_a_higher_class_gets_the_budget_of_a_step_first() -> None:
    host = Host(max_num_batched_tokens=16, num_blocks=100)
    host.submit(make_request("low", 100, priority=-1))
    host.step()
    host.submit(make_request("high", 12, arrival=1))
    host.step()
    assert host.runner.batches[-1] == {"low": 1 + 3, "high": 12}


def test_priority_preemption_changes_no_text() -> None:
    """The same requests with and without a higher class that comes again and again."""

    def texts(*, disturbed: bool) -> dict[str, list[int]]:
        host = Host(max_num_requests=2, num_blocks=14)
        for index in range(2):
            host.submit(make_request(f"r{index}", 4, 5, 3, arrival=index, priority=-1, max_tokens=25))
        for number in range(12):
            for ref in list(host.in_flight):
                host.arrive(ref)
            host.step()
            if disturbed and number % 3 == 2:
                host.submit(make_request(f"high{number}", 6, arrival=10 + number, max_tokens=3))
        host.run()
        host.check_outputs()
        assert (host.engine.stats().num_preemptions > 1) == disturbed
        return {name: outcome.token_ids for name, outcome in host.outcomes.items() if name.startswith("r")}

    assert texts(disturbed=True) == texts(disturbed=False)


def test_a_tenant_with_all_places_gives_some_to_one_that_comes() -> None:
    host = Host(max_num_requests=4, num_blocks=100)
    for index in range(8):
        host.submit(make_request(f"a{index}", 3, arrival=index, tenant=b"a", max_tokens=50))
    host.step()
    for index in range(8, 12):
        host.submit(make_request(f"b{index}", 3, arrival=index, tenant=b"b", max_tokens=50))
        host.step()
    assert running(host) == {b"a": 2, b"b": 2}
    assert host.requests["a0"].num_preemptions == host.requests["a1"].num_preemptions == 0
    for _ in range(40):
        host.step()
    assert running(host) == {b"a": 2, b"b": 2}
    assert host.engine.stats().num_preemptions == 2, "places are not taken back and forth"
    host.run()
    host.check_outputs()


def test_a_tenants_oldest_request_gets_to_its_end_whatever_others_send() -> None:
    host = Host(max_num_requests=2, num_blocks=100)
    for index in range(3):
        host.submit(make_request(f"a{index}", 3, arrival=index, tenant=b"a", max_tokens=20))
    for number in range(60):
        host.submit(make_request(f"b{number}", 3, arrival=10 + number, tenant=b"%d" % number, max_tokens=1))
        host.step()
    assert host.outcomes["a0"].end == "length"
    host.run()


def test_long_prompts_of_one_tenant_leave_the_budget_to_another() -> None:
    host = Host(max_num_batched_tokens=32, max_num_requests=8, num_blocks=1000)
    for index in range(6):
        host.submit(make_request(f"a{index}", 300, arrival=index, tenant=b"a"))
    for _ in range(3):
        host.step()
    host.submit(make_request("b", 20, arrival=6, tenant=b"b"))
    host.step()
    assert host.runner.batches[-1]["b"] == 20


def test_some_blocks_are_left_to_those_that_run_already() -> None:
    host = Host(num_blocks=10, block_size=4, num_spare_blocks=2, max_num_requests=4)
    host.submit(make_request("first", 13, max_tokens=8))
    host.step()
    second = host.submit(make_request("second", 17, arrival=1, max_tokens=1))
    host.step()
    assert not second.block_table, "it would leave one block, and the first one will need more"
    host.run()
    assert host.engine.stats().num_preemptions == 0
    host.check_outputs()


def test_a_request_that_needs_the_spare_blocks_runs_alone() -> None:
    host = Host(num_blocks=8, block_size=4, num_spare_blocks=4)
    host.submit(make_request("all", 30, max_tokens=2))
    host.run()
    host.check_outputs()


@dataclass
class Call:
    """A request and when it came and got its first token, in seconds of the virtual clock."""

    request: Request
    came: float
    first_token: float | None = None

    @property
    def time_to_first_token(self) -> float:
        assert self.first_token is not None
        return self.first_token - self.came


def arrivals(rate: float, seconds: float, *, name: str, tenant: bytes, seed: int) -> list[Call]:
    """Requests that come by chance, `rate` a second."""
    draw = random.Random(seed)
    calls: list[Call] = []
    now = 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        prompt, output = draw.randint(60, 200), draw.randint(20, 120)
        request = make_request(f"{name}{len(calls)}", prompt, max_tokens=output, tenant=tenant)
        calls.append(Call(request, now))
    return calls


class AnyToken:
    """A runner that computes nothing."""

    def execute(self, batch: ScheduledBatch) -> StepResult:
        return StepResult(token_ids=[1] * len(batch.sampled))

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        pass

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        pass


def serve(calls: list[Call], *, waiting_for: list[Call]) -> None:
    """Run on a clock that steps move: 10 ms a step, and 0.1 ms for each of its tokens."""
    engine = Engine(
        config=SchedulerConfig(max_num_batched_tokens=256, max_num_requests=16, max_model_len=1000),
        num_blocks=1000,
        block_size=16,
        runner=AnyToken(),
    )
    todo = sorted(calls, key=lambda call: call.came, reverse=True)
    by_name = {call.request.request_id: call for call in calls}
    now, missing = 0.0, {call.request.request_id for call in waiting_for}
    for arrival, call in enumerate(reversed(todo)):
        call.request.arrival = arrival
    while missing:
        if not engine.has_work:
            now = max(now, todo[-1].came)
        while todo and todo[-1].came <= now:
            engine.submit(todo.pop().request)
        output = engine.step()
        now += 0.010 + 0.0001 * engine.stats().num_batched_tokens
        for token in output.tokens:
            call = by_name[token.request_id]
            call.first_token = call.first_token or now
            missing.discard(token.request_id)


def p99(calls: list[Call]) -> float:
    times = sorted(call.time_to_first_token for call in calls)
    return times[int(0.99 * len(times))]


@pytest.mark.parametrize("is_fair", [True, False])
def test_a_tenant_at_ten_times_the_load_does_not_push_anothers_first_tokens_past_twice_their_time(
    is_fair: bool,
) -> None:
    """The control has both under one name, which is plain first come first served: there it does."""

    alone, beside = (arrivals(4.0, 25.0, name="victim", tenant=b"victim", seed=1) for _ in range(2))
    noise = arrivals(40.0, 25.0, name="noisy", tenant=b"noisy" if is_fair else b"victim", seed=2)
    serve(alone, waiting_for=alone)
    serve(beside + noise, waiting_for=beside)
    assert (p99(beside) <= 2 * p99(alone)) == is_fair
