import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.text.stop_checker import StopChecker

# Two letters make overlaps likely.
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=6)


def by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop text that is complete first, the longest of several; slow, and obviously so."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    checker = StopChecker(stops)
    told = []
    for piece in pieces:
        text, stop = checker.feed(piece)
        told.append(text)
        if stop is not None:
            return told, stop
    return [*told, checker.flush()], None


@given(st.lists(st.text("abc", max_size=6), max_size=12), STOPS)
def test_any_cutting_gives_what_the_definition_says(pieces: list[str], stops: list[str]) -> None:
    told, stop = run(pieces, stops)
    assert ("".join(told), stop) == by_definition("".join(pieces), stops)


@given(st.lists(st.text("abc", max_size=6), max_size=12), STOPS)
def test_exactly_what_may_begin_a_stop_text_is_held_back(pieces: list[str], stops: list[str]) -> None:
    checker = StopChecker(stops)
    given_text, told = "", ""
    for piece in pieces:
        text, stop = checker.feed(piece)
        given_text, told = given_text + piece, told + text
        if stop is not None:
            break
        held = given_text.removeprefix(told)
        starts = [prefix for stop in stops for prefix in (stop[:size] for size in range(len(stop)))]
        longest = max((start for start in starts if given_text.endswith(start)), key=len, default="")
        assert held == longest


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["ab", "\n#", "#", "# next"], ["###"], (["ab", "\n", "", ""], "###")),
        (["the e", "nd."], ["end"], (["the ", ""], "end")),
        (["the e", "rror"], ["end"], (["the ", "error", ""], None)),
        (["abcd"], ["bc", "abcd"], (["a"], "bc")),
        (["xabc"], ["bc", "abc"], (["x"], "abc")),
        (["aab"], ["ab"], (["a"], "ab")),
        (["no stops"], [], (["no stops", ""], None)),
    ],
)
def test_worked_examples(pieces: list[str], stops: list[str], expected: tuple[list[str], str | None]) -> None:
    assert run(pieces, stops) == expected


def test_nothing_is_told_after_a_stop_text() -> None:
    checker = StopChecker(["."])
    assert checker.feed("One. Two") == ("One", ".")
    assert checker.feed("more") == ("", ".")
    assert checker.flush() == ""


def test_time_grows_with_the_text_alone() -> None:
    # Every character extends a match that fails at its last character: the worst case of a naive search.
    stops = ["a" * size + "b" for size in range(48, 64)]
    started = time.thread_time()
    told, stop = run(["a" * 7] * 30_000, stops)
    assert stop is None
    assert len("".join(told)) == 210_000
    assert time.thread_time() - started < 5
