"""Tries beyond the first stay a small part of all, whatever happens."""

from decoder_service.vision.retry_budget import RetryBudget


def test_in_the_long_run_a_fifth_of_the_calls_may_be_repeated() -> None:
    budget = RetryBudget(now=0.0)
    repeated = 0
    for _ in range(10_000):
        budget.called(now=0.0)
        repeated += budget.take(now=0.0)
        repeated += budget.take(now=0.0)
    assert 0.2 * 10_000 <= repeated <= 0.2 * 10_000 + 128


def test_the_calls_of_one_dead_replica_may_all_be_repeated() -> None:
    budget = RetryBudget(now=0.0)
    assert sum(budget.take(now=0.0) for _ in range(1000)) == 128


def test_time_brings_tries_back_for_those_who_call_seldom() -> None:
    budget = RetryBudget(now=0.0)
    while budget.take(now=0.0):
        pass
    assert not budget.take(now=0.5)
    assert budget.take(now=1.5)
    assert sum(budget.take(now=10_000.0) for _ in range(1000)) == 128


def test_time_that_is_looked_at_often_brings_back_as_much() -> None:
    budget = RetryBudget(now=0.0)
    while budget.take(now=0.0):
        pass
    assert sum(budget.take(now=step / 4) for step in range(1, 41)) == 10
