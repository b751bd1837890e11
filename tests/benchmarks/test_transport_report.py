"""Rounds of a machine in two states are never put into one figure."""

import pytest

from benchmarks.transport_report import report, states

TOGETHER, APART = [28.0, 30.0, 27.0, 29.0], [8.0, 9.0, 8.5]


def test_rounds_are_kept_apart_by_the_state_that_the_machine_was_in() -> None:
    mixed = [28.0, 8.0, 30.0, 9.0, 27.0, 8.5, 29.0]
    assert [sorted(rounds) for rounds in states(mixed)] == [[1, 3, 5], [0, 2, 4, 6]]
    assert [sorted(rounds) for rounds in states(TOGETHER)] == [[0, 1, 2, 3]]
    assert states([28.0, 8.0]) == [[1, 0]], "too few to be told apart"
    assert [sorted(rounds) for rounds in states([*TOGETHER, 8.0])] == [[0, 1, 2, 3]]


def test_a_state_in_which_the_goal_is_missed_is_not_hidden_by_another(capsys: pytest.CaptureFixture[str]) -> None:
    handovers = [*APART, *TOGETHER]
    found = {"bare": [100.0] * 3 + [300.0] * 4, "service": [100.0] * 3 + [210.0] * 4}
    assert not report(8, handovers, found)
    assert report(8, handovers, {**found, "service": [100.0] * 3 + [250.0] * 4})
    text = capsys.readouterr().out
    assert "3 rounds in which one core read 8 GB/s" in text
    assert " 70%" in text
