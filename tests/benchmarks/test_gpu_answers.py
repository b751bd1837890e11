"""Rates are of the time in which all requests are decoded, and workloads are the same in every process."""

from pathlib import Path

import pytest

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.workloads import decode_workload, offline_workload


def answers(*times: list[float]) -> Answers:
    return Answers(tokens=[[7] * len(each) for each in times], times=list(times), seconds=max(map(max, times)))


def test_the_decode_rate_leaves_out_prompts_and_the_tail() -> None:
    # All decode from 3 to 5: in that time the first has tokens at 4 and 5, the second at 4.
    assert answers([1.0, 2.0, 4.0, 5.0], [3.0, 4.0, 6.0, 9.0]).decode_rate() == pytest.approx(3 / 2)


def test_the_decode_rate_leaves_out_the_first_eighth_in_which_a_peer_may_compile() -> None:
    slow = [0.0, 100.0, 200.0]
    steady = [200.0 + 0.5 * step for step in range(1, 14)]
    assert answers(slow + steady).decode_rate() == pytest.approx(2.0)
    # The negative control: one that is slow for longer is no faster for it.
    assert answers([-100.0, *slow, *steady[:-1]]).decode_rate() < 0.2


def test_a_rate_without_a_time_in_which_all_decode_is_refused() -> None:
    with pytest.raises(ValueError, match="ended before the last one began"):
        answers([1.0, 2.0], [3.0, 4.0]).decode_rate()


def test_a_number_of_tokens_is_there_with_the_last_of_them_whoever_gets_it() -> None:
    found = answers([1.0, 4.0], [2.0, 9.0])
    assert [found.seconds_until(count) for count in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 9.0]
    with pytest.raises(ValueError, match="4 tokens were timed, and not 5"):
        found.seconds_until(5)


def test_the_offline_workload_is_256_requests_of_100_to_1024_tokens_and_the_same_each_time() -> None:
    workload = offline_workload(vocab_size=50)
    assert workload == offline_workload(vocab_size=50)
    assert len(workload.prompts) == len(workload.num_new) == 256
    for lengths in ([len(prompt) for prompt in workload.prompts], workload.num_new):
        assert 100 <= min(lengths) < 120
        assert 1000 < max(lengths) <= 1024
    assert max(max(prompt) for prompt in workload.prompts) == 49


def test_prompts_of_a_workload_differ_from_their_first_tokens_on() -> None:
    prompts = decode_workload(128, vocab_size=131072).prompts
    assert len({prompt[:16] for prompt in prompts}) == 128


def test_a_beginning_has_the_first_requests_with_shorter_outputs() -> None:
    workload = offline_workload(vocab_size=50, num_requests=6, least=3, most=9)
    part = workload.beginning(num_requests=4, num_new=5)
    assert part.prompts == workload.prompts[:4]
    assert part.num_new == tuple(min(count, 5) for count in workload.num_new[:4])


def test_our_figures_reach_another_process_whole(tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    figures = OwnFigures({"a": answers([1.0, 2.5], [2.0])}, {"256 px": 3.5})
    figures.write(file)
    assert OwnFigures.read(file) == figures
