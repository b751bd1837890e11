"""Stop texts in the streams of every kind of tokenizer: across tokens, inside characters, and never let out."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import TokenOutput
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import load_tokenizer
from decoder_service.text.detokenizer import Detokenizer
from decoder_service.text.text_stream import TextStream

# Few letters, some of several bytes, so that tokens cut characters and stop texts overlap.
TEXTS = st.text("ab é世🙂\n", max_size=12)


@pytest.fixture(
    scope="session", params=["tokenizer.model.v1", "tekken_240911.json", "bytes", "words"], ids=lambda name: str(name)
)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param in ("bytes", "words"):
        return load_tokenizer(request.getfixturevalue(f"hf_{request.param}"))
    loaded: Tokenizer = request.getfixturevalue("load_mistral")(request.param)[0]
    return loaded


def stream(tokenizer: Tokenizer, token_ids: Sequence[int], stops: Sequence[str]) -> tuple[list[str], str | None]:
    """The pieces that are told, token by token, and the stop text that ended them."""
    text, told = TextStream(tokenizer, stops), []
    for place, token_id in enumerate(token_ids, start=1):
        last = FinishReason.LENGTH if place == len(token_ids) else None
        piece = text.feed([TokenOutput("r", token_id, finish_reason=last)])
        told.append(piece.text)
        if piece.finish_reason is not None:
            return told, piece.stop_text
    return told, None


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop text that is complete first, the longest of several."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(texts=st.lists(TEXTS, max_size=4), data=st.data())
def test_what_is_told_is_the_decoded_text_before_the_stop_text(
    tokenizer: Tokenizer, texts: list[str], data: st.DataObject
) -> None:
    token_ids = [token_id for text in texts for token_id in tokenizer.encode_text(text)]
    # Tokens out of place break characters, and end some early.
    token_ids = [token_id for token_id in token_ids if data.draw(st.integers(0, 9))]
    detokenizer = Detokenizer(tokenizer.texts)
    whole = detokenizer.feed(token_ids) + detokenizer.flush()
    places = st.integers(0, max(len(whole) - 1, 0))
    parts = st.tuples(places, st.integers(1, 5)).map(lambda place: whole[place[0] :][: place[1]]).filter(bool)
    stops = data.draw(st.lists(st.text("ab ", min_size=1, max_size=3) | (parts if whole else st.just("a")), max_size=3))
    told, stop = stream(tokenizer, token_ids, stops)
    assert ("".join(told), stop) == first_stop(whole, stops)


def test_a_stop_text_inside_a_character_of_two_tokens_is_found_when_it_is_whole(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode_text("a🙂b")
    told, stop = stream(tokenizer, token_ids, ["🙂"])
    assert ("".join(told), stop) == ("a", "🙂")
    assert not any("\ufffd" in piece for piece in told)
