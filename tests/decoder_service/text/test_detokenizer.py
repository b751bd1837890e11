from hypothesis import example, given
from hypothesis import strategies as st

from decoder_service.text.detokenizer import Detokenizer, TokenTexts

# Lead and continuation bytes of every length, surrogates, over-long forms and ends of range among them.
TRICKY = st.sampled_from([0x41, 0x80, 0xBF, 0xC0, 0xC2, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF, 0x9F, 0xA0])
PIECES = st.lists(
    st.one_of(st.binary(max_size=5), st.lists(TRICKY, max_size=5).map(bytes), st.text(max_size=3).map(str.encode))
)


def stream(pieces: list[bytes], batches: list[int]) -> list[str]:
    """Feed the pieces as tokens 0, 1, ..., as many at a time as `batches` says, then one at a time."""
    detokenizer = Detokenizer(TokenTexts(pieces=pieces))
    told, token_id = [], 0
    for size in batches + [1] * len(pieces):
        told.append(detokenizer.feed(range(token_id, min(token_id + size, len(pieces)))))
        token_id = min(token_id + size, len(pieces))
    return [*told, detokenizer.flush()]


@given(PIECES, st.lists(st.integers(0, 4)))
@example([b"\xf0\x9f", b"\x98\x80"], [])
@example([b"\xe2\x82", b"A"], [])
@example([b"\xed\xa0\x80", b"\xf0"], [])
def test_pieces_together_equal_the_decoding_of_all_bytes(pieces: list[bytes], batches: list[int]) -> None:
    assert "".join(stream(pieces, batches)) == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(), st.data())
def test_valid_text_is_told_in_whole_characters_wherever_it_is_cut(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    told = stream(pieces, [])
    assert "".join(told) == text
    for count in range(len(pieces) + 1):
        # What is told so far is all that is complete so far, and nothing more.
        complete = b"".join(pieces[:count]).decode("utf-8", "ignore")
        assert "".join(told[:count]) == complete


def test_an_incomplete_last_character_becomes_a_replacement_character() -> None:
    assert stream([b"a", b"\xe2\x82"], []) == ["a", "", "\ufffd"]


def test_ids_that_only_the_models_padding_has_write_nothing_wherever_they_stand() -> None:
    detokenizer = Detokenizer(TokenTexts(pieces=[b"a", b"b"]))
    assert [detokenizer.add(token_id) for token_id in (2, 0, 2, 9, 1)] == ["", "a", "", "", "b"]


def test_a_vocabulary_says_how_a_text_begins_and_what_becomes_of_a_broken_character() -> None:
    pieces = [b" a", b" b", b"\xe2\x82", None]

    def told(token_ids: list[int], *, first: bool = True, **corners: bool) -> str:
        detokenizer = Detokenizer(TokenTexts(pieces=pieces, first_pieces={0: b"a", 1: b"b"}, **corners), first=first)
        return detokenizer.feed(token_ids) + detokenizer.flush()

    assert told([3, 1, 0, 1]) == "b a b"
    assert told([0, 1], first=False) == " a b"
    assert told([2, 0]) == "\ufffd a"
    assert told([2, 0], replaces_each_byte=True) == "\ufffd\ufffd a"
    split = [b"\xe2", None, b"\x82\xac"]
    assert Detokenizer(TokenTexts(pieces=split)).feed(range(3)) == "\ufffd" * 3
    assert Detokenizer(TokenTexts(pieces=split, control_ends_character=False)).feed(range(3)) == "\u20ac"
