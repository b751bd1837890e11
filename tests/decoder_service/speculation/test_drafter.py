"""How many tokens are tried follows from how many were right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.speculation.drafter import Drafter
from tests.decoder_service.engine_fakes import make_request


def new_drafter(most: int = 8) -> Drafter:
    return Drafter(most=most, most_tokens=100)


def test_the_length_doubles_while_all_are_right_up_to_the_most() -> None:
    drafter = new_drafter(most=20)
    lengths = []
    for _ in range(5):
        lengths.append(drafter.length)
        drafter.tried(drafter.length, drafter.length)
    assert lengths == [4, 8, 16, 20, 20]


@pytest.mark.parametrize(("num_accepted", "length"), [(7, 8), (3, 4), (1, 2)])
def test_where_some_were_right_one_more_than_those_are_tried(num_accepted: int, length: int) -> None:
    drafter = new_drafter()
    drafter.tried(8, num_accepted)
    assert drafter.length == length


def test_the_most_bounds_the_first_length_too() -> None:
    assert new_drafter(most=2).length == 2


def test_who_is_never_right_waits_twice_as_long_each_time_up_to_64_steps() -> None:
    drafter = new_drafter()
    waits = []
    for _ in range(9):
        drafter.tried(drafter.length, 0)
        waits.append(0)
        while drafter.is_waiting():
            waits[-1] += 1
    assert waits == [2, 4, 8, 16, 32, 64, 64, 64, 64]
    assert drafter.length == 1


def test_who_is_right_once_does_not_wait() -> None:
    drafter = new_drafter()
    for _ in range(6):
        drafter.tried(drafter.length, 0)
    while drafter.is_waiting():
        pass
    drafter.tried(1, 1)
    assert not drafter.is_waiting()
    drafter.tried(drafter.length, 0)
    assert [drafter.is_waiting() for _ in range(4)] == [True, True, False, False]


def test_who_gave_up_tries_nothing_any_more() -> None:
    request = make_request("r", 1)
    request.output_token_ids = [1, 2, 3, 4, 5, 1, 2, 3]
    drafter = new_drafter()
    assert drafter.draft(request, 8)
    drafter.give_up()
    assert not drafter.draft(request, 8)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.integers(1, 9))
def test_the_length_is_always_from_one_to_the_most(tries: list[tuple[int, int]], most: int) -> None:
    drafter = new_drafter(most)
    for num_tokens, num_accepted in tries:
        drafter.tried(max(num_tokens, num_accepted, 1), num_accepted)
        assert 1 <= drafter.length <= most
