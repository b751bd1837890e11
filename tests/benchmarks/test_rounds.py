"""What measurements in turns have in common: their order, ratios and repetitions, and what a peer's failure costs."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.compare.turns import take_turn
from benchmarks.peers.loading import noted
from benchmarks.peers.protocol import PeerError
from benchmarks.rounds import in_turn, median_ratio


def test_each_round_has_all_and_begins_with_another() -> None:
    rounds = [in_turn("abc", number) for number in range(4)]
    assert ["".join(each) for each in rounds] == ["abc", "bca", "cab", "abc"]


def test_ratios_are_taken_round_by_round_before_their_median() -> None:
    """The machine is twice as slow in the last two rounds; a ratio of medians would say 2."""
    assert median_ratio([8.0, 4.0, 4.0], [2.0, 1.0, 4.0]) == 4.0


def test_short_work_is_repeated_until_its_processor_time_can_be_told() -> None:
    ticks = iter((1.0, 1.24))
    worker: Any = SimpleNamespace(processor_seconds=lambda: next(ticks))
    asked: list[int] = []

    def work(repeat: int) -> tuple[int, float]:
        asked.append(repeat)
        return 3, 0.125

    turn = take_turn(worker, work)
    assert asked == [0, 1, 2, 3]
    assert turn.rate == 12 / 0.5
    assert math.isclose(turn.cost, 1000 * 0.24 / 12)


def test_a_peer_that_fails_is_written_down_and_ours_ends_everything() -> None:
    failed: dict[str, str] = {}

    def fail(name: str, error: Exception) -> None:
        with noted(name, failed):
            raise error

    fail("vllm", PeerError("it has no memory"))
    assert failed == {"vllm": "it has no memory"}
    with pytest.raises(PeerError, match="it is broken"):
        fail("diptych", PeerError("it is broken"))
    with pytest.raises(ZeroDivisionError):
        fail("vllm", ZeroDivisionError())
