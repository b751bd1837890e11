"""The comparison of steps with and without overlap compares what it says, and finds wrong tokens."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.gpu import clock, overlap
from benchmarks.gpu.overlap import TimedQueue, overlap_rows
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.compute import TorchCompute
from tests.benchmarks.on_cpu import CPU, tiny_decoder


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "NEW_TOKENS", 6)
    monkeypatch.setattr(overlap, "_GREEDY", replace(overlap._GREEDY, max_tokens=6))
    monkeypatch.setattr(overlap, "_DRAWN", replace(overlap._DRAWN, max_tokens=6))


def test_both_ways_are_timed_and_give_the_same_tokens() -> None:
    model = tiny_decoder()
    rows = list(overlap_rows(model, TorchCompute, (1, 3)))
    assert [row["right"] for row in rows] == [True] * 4
    for row in rows:
        assert float(str(row["tokens/s"])) > 0
        assert 0 < float(str(row["idle share"])) < 1


def test_a_step_ahead_that_goes_on_from_other_tokens_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForwardBatch, "continued_from", lambda self, before: self)
    model = tiny_decoder()
    rows = list(overlap_rows(model, TorchCompute, (3,)))
    assert [row["right"] for row in rows] == [False, False]


def test_the_idle_share_is_the_time_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 3.0, 4.0, 8.0, 8.0, 10.0])
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    queue = TimedQueue(CPU)
    for _ in range(3):
        queue.put(lambda: None)
    assert queue.idle_share() == pytest.approx(0.1)
    # Steps of 3, 4 and 2 seconds, of which a fast one needs 2.
    assert queue.slack_share() == pytest.approx(0.3)
