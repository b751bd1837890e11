"""What is looked up is what followed the same tokens before, and looking costs the same however long a request is."""

import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.speculation.prompt_lookup import LENGTH, PromptLookup


class Known:
    """Tokens that grow; it counts those that were looked at."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.all = list(token_ids)
        self.num_seen = 0

    @property
    def num_tokens(self) -> int:
        return len(self.all)

    def token_ids(self, start: int, stop: int) -> Sequence[int]:
        assert 0 <= start <= stop <= len(self.all)
        self.num_seen += stop - start
        return self.all[start:stop]


def read_and_draft(lookup: PromptLookup, tokens: Known, most: int) -> tuple[int, ...]:
    lookup.read(tokens, 10**6)
    return lookup.draft(tokens, most)


def draft_of(token_ids: Sequence[int], most: int = 4, *, most_tokens: int = 1000) -> tuple[int, ...]:
    return read_and_draft(PromptLookup(most_tokens), Known(token_ids), most)


def test_what_followed_the_last_tokens_before_is_tried() -> None:
    assert draft_of([7, 1, 2, 3, 4, 5, 6, 9, 1, 2, 3]) == (4, 5, 6, 9)


def test_of_several_places_the_latest_counts() -> None:
    assert draft_of([1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3], most=2) == (5, 0)


def test_nothing_is_tried_where_the_last_tokens_are_new() -> None:
    assert draft_of([1, 2, 3, 4, 1, 2, 4]) == ()
    assert draft_of([1, 2]) == ()
    assert draft_of([1, 2, 3]) == ()


def test_what_repeats_itself_goes_on_repeating() -> None:
    assert draft_of([5, 1, 2, 1, 2, 1], most=7) == (2, 1, 2, 1, 2, 1, 2)


def test_none_are_tried_where_none_may_be() -> None:
    assert draft_of([1, 2, 3, 4, 1, 2, 3], most=0) == ()
    assert draft_of([1, 2, 3, 4, 1, 2, 3], most=-1) == ()


@given(
    token_ids=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    most=st.integers(1, 9),
    most_tokens=st.sampled_from([1, 5, 1000]),
    known=st.integers(1, 60),
)
def test_a_draft_goes_on_as_a_place_with_the_same_tokens_did(
    token_ids: list[int], most: int, most_tokens: int, known: int
) -> None:
    """Also where its memory is too small for all places, and where it was asked all along as tokens came."""
    lookup, tokens = PromptLookup(most_tokens), Known(token_ids[:known])
    drafts = [read_and_draft(lookup, tokens, most)]
    for token_id in token_ids[known:]:
        tokens.all.append(token_id)
        drafts.append(read_and_draft(lookup, tokens, most))
    for num_tokens, draft in enumerate(drafts, len(token_ids[:known])):
        there = token_ids[:num_tokens]
        continued = [*there, *draft]
        places = [
            end
            for end in range(LENGTH, num_tokens)
            if there[end - LENGTH : end] == there[-LENGTH:] and continued[end : end + len(draft)] == list(draft)
        ]
        assert len(draft) == most and places if draft else True
        if most_tokens > 64:  # Room for all places, but for those that meet by chance.
            repeated = any(there[end - LENGTH : end] == there[-LENGTH:] for end in range(LENGTH, num_tokens))
            assert repeated or not draft


def test_a_long_prompt_is_read_in_parts_and_nearly_all_of_it_is_found() -> None:
    tokens = Known([*range(10_000)])
    lookup = PromptLookup(tokens.num_tokens)
    parts: list[int] = []
    while not parts or parts[-1]:
        tokens.num_seen = 0
        parts.append(lookup.read(tokens, 2048))
        assert tokens.num_seen <= parts[-1] + LENGTH
    assert parts == [2048] * 4 + [9_999 - 4 * 2048, 0]
    places = range(0, 9_990, 97)
    found = 0
    for place in places:
        tokens.all += [place, place + 1, place + 2]
        draft = read_and_draft(lookup, tokens, 2)
        assert draft in ((), (place + 3, place + 4))
        found += bool(draft)
    assert found > 0.9 * len(places)  # Some have given their places to others.


@pytest.mark.parametrize("most_tokens", [10, 100, 1000, 10_000, 100_000, 1_000_000])
def test_its_memory_is_some_bytes_for_each_token_and_about_a_megabyte_at_most(most_tokens: int) -> None:
    tracemalloc.start()
    lookup = PromptLookup(most_tokens)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 2000 + 1.1 * min(32 * most_tokens, 2**20)
    assert lookup.draft(Known([1]), 1) == ()


def test_nothing_is_tried_before_all_is_read() -> None:
    tokens = Known([1, 2, 3, 4, 5, 6, 1, 2, 3])
    lookup = PromptLookup(10)
    drafts = []
    for _ in range(4):
        assert lookup.read(tokens, 2) == 2
        drafts.append(lookup.draft(tokens, 2))
    assert drafts == [(), (), (), (4, 5)]
    assert lookup.read(tokens, 2) == 0


def test_a_step_late_in_a_long_request_looks_at_as_few_tokens_as_an_early_one() -> None:
    tokens = Known(list(range(100)) * 200)
    lookup = PromptLookup(tokens.num_tokens)
    lookup.read(tokens, tokens.num_tokens)
    for token_id in range(100):
        tokens.all.append(token_id)
        tokens.num_seen = 0
        assert len(read_and_draft(lookup, tokens, 4)) == 4
        assert tokens.num_seen <= 5 * LENGTH
