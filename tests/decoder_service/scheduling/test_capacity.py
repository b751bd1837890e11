"""What a request may ask for at most: never more than can run to its end."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgumentError
from decoder_service.scheduling.capacity import Capacity

CAPACITY = Capacity(max_model_len=10, num_blocks=100, block_size=1, max_num_requests=4)


@pytest.mark.parametrize(("num_prompt_tokens", "max_tokens"), [(10, 1), (1, 10), (11, 5)])
def test_what_can_never_fit_is_refused_with_both_numbers(num_prompt_tokens: int, max_tokens: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        CAPACITY.check(num_prompt_tokens, max_tokens)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert caught.value.metadata == {"limit": "10", "got": str(num_prompt_tokens + max_tokens)}


def test_max_tokens_that_no_prompt_can_have_is_refused_by_its_own_name() -> None:
    for n, capacity, limit in ((1, CAPACITY, 10), (2, replace(CAPACITY, num_blocks=16), 8)):
        with pytest.raises(InvalidArgumentError) as caught:
            capacity.check(1, limit + 1, n=n)
        assert (caught.value.reason, caught.value.field) == ("MAX_TOKENS_TOO_LARGE", "sampling.max_tokens")
        assert (caught.value.metadata["limit"], caught.value.metadata["got"]) == (str(limit), str(limit + 1))
        with pytest.raises(InvalidArgumentError) as caught:
            capacity.check(1, limit, n=n)
        assert caught.value.reason == "PROMPT_TOO_LONG"


def test_what_just_fits_is_not_refused() -> None:
    CAPACITY.check(9, 1)
    CAPACITY.check(9, 1, n=4)


def test_more_completions_than_can_run_are_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        CAPACITY.check(1, 1, n=5)
    assert (caught.value.reason, caught.value.field) == ("VALUE_OUT_OF_RANGE", "sampling.n")
    assert caught.value.metadata == {"allowed": "1 to 4", "got": "5"}


@given(
    num_prompt_tokens=st.integers(1, 60),
    n=st.integers(1, 8),
    block_size=st.sampled_from([1, 3, 16]),
    num_blocks=st.integers(1, 40),
    max_model_len=st.integers(1, 80),
)
def test_the_most_tokens_are_those_whose_blocks_there_are(
    num_prompt_tokens: int, n: int, block_size: int, num_blocks: int, max_model_len: int
) -> None:
    """Counted block by block: full blocks of the prompt once, all others for each completion."""
    capacity = Capacity(max_model_len=max_model_len, num_blocks=num_blocks, block_size=block_size, max_num_requests=8)

    def fits(max_tokens: int) -> bool:
        length = num_prompt_tokens + max_tokens
        starts = range(0, length, block_size)
        shared = [start for start in starts if start + block_size <= num_prompt_tokens]
        return len(shared) + n * (len(starts) - len(shared)) <= num_blocks and length <= max_model_len

    most = capacity.max_tokens(num_prompt_tokens, n=n)
    assert most < 1 or fits(most)
    assert not fits(max(most, 0) + 1)
