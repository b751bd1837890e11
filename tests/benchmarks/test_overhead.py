"""What C10 asks of both of its sides."""

import os
import subprocess
import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.peers.protocol import ROOT, niceness_of_session
from benchmarks.service.overhead import Found, OverheadResult, round_plans
from benchmarks.statistics import Spread

_STARTS_A_WORKER = """
import sys
from pathlib import Path
from benchmarks.peers.protocol import Worker, niceness_of_session

Path("/proc/self/autogroup").write_text("7")
module, log = "benchmarks.peers.ours_scheduling", Path("/dev/null")
with Worker(Path(sys.executable), module, cores=[0], environment={}, log=log) as worker:
    alone = niceness_of_session(worker._process.pid)
    if sys.argv[1] == "prefer":
        worker.prefer_as_ourselves()
    print(alone, niceness_of_session(worker._process.pid))
"""


def test_no_prompt_of_a_round_comes_again_in_another_or_at_another_concurrency() -> None:
    """The service's prefix cache is larger than the engine's alone, so that it would find more of them."""
    prompts = []
    for concurrency in (1, 8, 32):
        for number in range(9):
            plans, firsts = round_plans(concurrency, number, range(100, 400))
            assert len(firsts) == (8 if concurrency == 1 else 0)
            prompts += [plan.text_token_ids for plan in (*plans, *firsts)]
    assert len(set(prompts)) == len(prompts) == 9 * (1 + 8 + 32 + 8)


def test_starts_count_alike_whatever_their_rounds_were() -> None:
    """An engine is as fast as its start has made it: two fast starts and a slow one are told as such."""
    starts = [
        Found(in_process_rate=100, service_rate=ratio * 100, rate_ratio=ratio, added_ttft_ms=None)
        for ratio in (1.03, 0.95, 0.86)
    ]
    result = OverheadResult.of(8, starts)
    assert result.rate_ratio == Spread(median=0.95, lowest=0.86, highest=1.03)
    assert result.service_rate == Spread(median=95, lowest=86, highest=103)
    assert result.added_ttft_ms is None


def test_more_to_the_first_token_is_told_where_it_was_measured() -> None:
    """With one request at a time alone."""
    starts = [Found(in_process_rate=1, service_rate=1, rate_ratio=1, added_ttft_ms=added) for added in (4.0, 2.0)]
    assert OverheadResult.of(1, starts).added_ttft_ms == Spread(median=3.0, lowest=2.0, highest=4.0)


@pytest.mark.skipif(niceness_of_session("self") is None or os.geteuid() != 0, reason="cores are not shared by sessions")
def test_an_engine_in_a_session_of_its_own_is_preferred_as_its_benchmark_is() -> None:
    """The services run in the benchmark's session: on a busy core the two sides would have other shares of it."""

    def niceness(how: str) -> str:
        command = [sys.executable, "-c", _STARTS_A_WORKER, how]
        done = subprocess.run(  # noqa: S603
            command, start_new_session=True, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        return done.stdout.strip()

    assert niceness("prefer") == "0 7"
    assert niceness("leave") == "0 0"


@pytest.mark.parametrize("policy", [os.SCHED_RR, os.SCHED_FIFO])
def test_nothing_is_measured_under_a_policy_that_gathers_tokens(policy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is woken waits there until the engine's has had its turn, and then tells of several tokens."""
    monkeypatch.setattr(os, "sched_getscheduler", lambda process: policy)
    with pytest.raises(SystemExit, match="without chrt"):
        main(["service", "--quick"])
