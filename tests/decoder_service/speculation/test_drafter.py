"""How many tokens are tried follows from how many were right, and from what trying one costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.speculation.drafter import FIRST_LIKELIHOOD, Drafter
from tests.decoder_service.engine_fakes import make_request


def new_drafter(most: int = 1000) -> Drafter:
    return Drafter(most=most, most_tokens=100)


@pytest.mark.parametrize("likelihood", [0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("price", [0.001, 0.02, 0.15, 0.6, 0.98])
def test_each_token_that_is_tried_is_as_likely_to_be_kept_as_it_costs(likelihood: float, price: float) -> None:
    drafter = new_drafter()
    drafter.likelihood = likelihood
    length = drafter.length(price)
    assert length == sum(likelihood**place > price for place in range(1, 2000)) or length == 1000


@pytest.mark.parametrize("price", [1.0, 1.5, 20.0])
def test_nothing_is_tried_that_costs_as_much_as_a_next_token(price: float) -> None:
    drafter = new_drafter()
    drafter.tried(500, 500)
    assert drafter.length(price) == 0


def test_the_most_bounds_the_length() -> None:
    assert new_drafter(most=2).length(0.001) == 2


def test_the_likelihood_comes_near_to_the_part_of_tries_that_is_right() -> None:
    drafter = new_drafter()
    found = []
    for number in range(4000):
        drafter.tried(1, int(number % 10 < 3))
        found.append(drafter.likelihood)
    assert sum(found[1000:]) / 3000 == pytest.approx(0.3, abs=0.03)


def test_tokens_behind_the_first_wrong_one_say_nothing() -> None:
    some, many = new_drafter(), new_drafter()
    some.tried(3, 2)
    many.tried(30, 2)
    assert some.likelihood == many.likelihood


def test_who_is_never_right_comes_to_try_nothing_and_again_after_a_while() -> None:
    drafter, price = new_drafter(), 0.5
    num_tries = 0
    while drafter.length(price):
        drafter.tried(drafter.length(price), 0)
        num_tries += 1
    assert num_tries < 5
    waits = []
    for _ in range(5):
        waits.append(0)
        while not drafter.length(price):
            drafter.passed()
            waits[-1] += 1
        drafter.tried(1, 0)
    assert min(waits[1:]) > 20


def test_waiting_makes_nobody_likelier_to_be_right_than_a_new_one() -> None:
    drafter = new_drafter()
    drafter.tried(1, 0)
    for _ in range(10_000):
        drafter.passed()
    assert drafter.likelihood == FIRST_LIKELIHOOD
    drafter.tried(100, 100)
    before = drafter.likelihood
    drafter.passed()
    assert drafter.likelihood == before > FIRST_LIKELIHOOD


def test_who_gave_up_tries_nothing_any_more() -> None:
    drafter = new_drafter()
    drafter.give_up()
    assert drafter.length(0.01) == 0


def test_what_is_tried_is_looked_up() -> None:
    request = make_request("r", 1)
    request.output_token_ids = [1, 2, 3, 4, 5, 1, 2, 3]
    drafter = new_drafter()
    assert drafter.lookup.draft(request, 2) == ()
    assert drafter.lookup.read(request, 100) == 8
    assert drafter.lookup.draft(request, 2) == (4, 5)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.floats(0.001, 3))
def test_a_length_is_found_whatever_happened(tries: list[tuple[int, int]], price: float) -> None:
    drafter = new_drafter(most=9)
    for num_tokens, num_accepted in tries:
        drafter.tried(max(num_tokens, num_accepted, 1), num_accepted)
        drafter.passed()
        assert 0 < drafter.likelihood < 1
        assert 0 <= drafter.length(price) <= 9
