"""How many tokens double a step's time is told from two of its sizes, and never becomes absurd."""

import pytest

from decoder_service.model.step_cost import LEAST, MOST, doubling_tokens


class Steps:
    """Steps on a clock of their own: `weights` seconds and `token` seconds for each token, and what disturbs some."""

    def __init__(self, weights: float, token: float, *, disturbed: frozenset[int] = frozenset()) -> None:
        self.weights, self.token, self.disturbed = weights, token, disturbed
        self.now = 0.0
        self.num_steps = 0

    def step(self, num_tokens: int) -> None:
        self.now += self.weights + num_tokens * self.token + (0.1 if self.num_steps in self.disturbed else 0.0)
        self.num_steps += 1

    def found(self) -> int:
        return doubling_tokens(self.step, clock=lambda: self.now)


@pytest.mark.parametrize(("weights", "token", "expected"), [(0.0092, 0.0004, 24), (0.03, 0.001, 31), (0.2, 0.02, 11)])
def test_so_many_tokens_double_a_step(weights: float, token: float, expected: int) -> None:
    found = Steps(weights, token).found()
    assert found == expected
    alone, doubled = weights + token, weights + (1 + found) * token
    assert doubled == pytest.approx(2 * alone, abs=token)


@pytest.mark.parametrize(("weights", "token", "expected"), [(0.0, 0.01, LEAST), (0.4, 0.0, MOST), (0.4, 1e-5, MOST)])
def test_it_stays_within_limits(weights: float, token: float, expected: int) -> None:
    assert Steps(weights, token).found() == expected


def test_a_larger_step_that_seems_faster_counts_as_free() -> None:
    assert Steps(0.009, -0.0001).found() == MOST


def test_what_disturbs_single_steps_changes_nothing_and_long_steps_are_not_repeated() -> None:
    disturbed = Steps(0.0092, 0.0004, disturbed=frozenset({0, 3, 4}))
    assert disturbed.found() == 24
    assert disturbed.num_steps == 6
    long = Steps(2.0, 0.1)
    assert long.found() == 21
    assert long.num_steps == 2
