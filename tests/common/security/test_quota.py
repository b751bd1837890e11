from contextlib import ExitStack

import pytest

from common.errors import ResourceExhaustedError
from common.security.quota import Limits, Quota


def refusal(quota: Quota, now: float) -> ResourceExhaustedError:
    with pytest.raises(ResourceExhaustedError) as raised, quota.call(now=now):
        pass
    return raised.value


def test_without_limits_everything_is_let_in() -> None:
    quota = Quota(Limits(), now=0)
    with ExitStack() as open_calls:
        for _ in range(1000):
            open_calls.enter_context(quota.call(now=0))
    quota.use_tokens(10**9, now=0)
    with quota.call(now=0):
        pass


def test_open_calls_are_counted_until_they_end() -> None:
    quota = Quota(Limits(max_open_calls=2), now=0)
    with quota.call(now=0):
        with quota.call(now=0):
            error = refusal(quota, 0)
        assert (error.reason, error.metadata) == ("CALLER_OPEN_CALLS", {"limit": "2"})
        with pytest.raises(ZeroDivisionError), quota.call(now=0):
            raise ZeroDivisionError
        with quota.call(now=0):
            pass


def test_a_minutes_calls_may_come_at_once_and_then_one_by_one() -> None:
    quota = Quota(Limits(calls_per_minute=30), now=100.0)
    for _ in range(30):
        with quota.call(now=100.0):
            pass
    error = refusal(quota, 100.5)
    assert error.reason == "CALLER_CALLS_PER_MINUTE"
    assert error.retry_after == pytest.approx(1.5)
    with quota.call(now=102.0):
        pass
    assert refusal(quota, 102.0).retry_after == pytest.approx(2.0)


def test_a_wait_of_a_moment_is_a_wait() -> None:
    quota = Quota(Limits(calls_per_minute=6000), now=0)
    for _ in range(6000):
        with quota.call(now=0):
            pass
    assert refusal(quota, 0.002).retry_after == pytest.approx(0.008)


def test_what_was_told_to_wait_is_let_in_after_that_long() -> None:
    quota = Quota(Limits(calls_per_minute=7, tokens_per_minute=100), now=0)
    now = 0.0
    for step in range(200):
        try:
            with quota.call(now=now):
                quota.use_tokens(step, now=now)
        except ResourceExhaustedError as error:
            now += (error.retry_after or 0.0) + 1e-6
            with quota.call(now=now):
                pass


def test_in_any_hour_no_more_than_the_allowance_and_one_minutes_worth_is_let_in() -> None:
    quota = Quota(Limits(calls_per_minute=6), now=0)
    let_in = 0
    for tenth in range(36_000):
        try:
            with quota.call(now=tenth / 10):
                let_in += 1
        except ResourceExhaustedError:
            pass
    assert 6 * 60 <= let_in <= 6 * 60 + 6


def test_tokens_above_the_limit_delay_the_next_call() -> None:
    quota = Quota(Limits(tokens_per_minute=600), now=0)
    with quota.call(now=0):
        quota.use_tokens(900, now=0)
    error = refusal(quota, 10)
    assert error.reason == "CALLER_TOKENS_PER_MINUTE"
    assert error.retry_after == pytest.approx(20.1)
    with quota.call(now=30.2):
        pass


def test_a_quiet_time_before_tokens_are_used_is_no_credit_for_later() -> None:
    quota = Quota(Limits(tokens_per_minute=600), now=0)
    with quota.call(now=0):
        quota.use_tokens(900, now=60)
    assert refusal(quota, 60).retry_after == pytest.approx(30.1)


def test_a_refused_call_costs_nothing() -> None:
    quota = Quota(Limits(calls_per_minute=60, max_open_calls=1), now=0)
    with quota.call(now=0):
        for _ in range(100):
            refusal(quota, 0)
    for _ in range(59):
        with quota.call(now=0):
            pass


def test_a_caller_is_idle_when_it_could_be_forgotten() -> None:
    quota = Quota(Limits(calls_per_minute=60), now=0)
    assert quota.is_idle(now=0)
    with quota.call(now=0):
        assert not quota.is_idle(now=100)
    assert not quota.is_idle(now=0.5)
    assert quota.is_idle(now=1.1)


def test_a_caller_without_limits_can_be_forgotten_whatever_it_used() -> None:
    quota = Quota(Limits(), now=0)
    with quota.call(now=0):
        quota.use_tokens(10**9, now=0)
    assert quota.is_idle(now=0)


def test_a_caller_who_owes_tokens_is_not_forgotten() -> None:
    quota = Quota(Limits(tokens_per_minute=60), now=0)
    quota.use_tokens(90, now=0)
    assert not quota.is_idle(now=89)
    assert quota.is_idle(now=91)


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    quota = Quota(Limits(calls_per_minute=1), now=100)
    with quota.call(now=100):
        pass
    refusal(quota, 0)
    refusal(quota, 1)
