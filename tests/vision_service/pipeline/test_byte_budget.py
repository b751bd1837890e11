"""Bytes are held up to a limit, and given back come what may."""

from contextlib import suppress

import pytest

from common.errors import ResourceExhaustedError
from vision_service.pipeline.byte_budget import ByteBudget


def test_all_bytes_there_are_can_be_held_and_not_one_more() -> None:
    budget = ByteBudget(10)
    budget.take(4)
    budget.take(6)
    with pytest.raises(ResourceExhaustedError) as caught:
        budget.take(1)
    assert (caught.value.reason, caught.value.metadata) == ("ENCODER_MEMORY_FULL", {"limit": "10", "got": "11"})
    assert caught.value.retry_after
    assert (budget.held, budget.limit) == (10, 10)
    budget.give(4)
    budget.take(1)
    assert budget.held == 7


def test_what_is_held_for_a_while_is_given_back_also_where_that_ends_with_an_error() -> None:
    budget = ByteBudget(10)
    with budget.hold(10):
        assert budget.held == 10
        with pytest.raises(ResourceExhaustedError), budget.hold(1):
            pass
        assert budget.held == 10, "what was refused is not given back"
    with suppress(ZeroDivisionError), budget.hold(10):
        raise ZeroDivisionError
    assert budget.held == 0
