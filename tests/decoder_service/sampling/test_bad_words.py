import pytest

from common.errors import InvalidArgumentError
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.sampling.bad_words import bad_token_sequences


@pytest.mark.parametrize("word", ["red", " red", "  red"])
def test_a_word_is_banned_inside_a_text_and_after_a_space(tekken: Tokenizer, word: str) -> None:
    sequences = bad_token_sequences([word], tekken.encode_text)
    assert {tuple(tekken.encode_text("red")), tuple(tekken.encode_text(" red"))} <= set(sequences)
    assert all(b"".join(map(tekken.token_bytes, ids)).strip() == b"red" for ids in sequences)


def test_words_become_each_sequence_once(tekken: Tokenizer) -> None:
    words = ["New York City", "\n", " ", "🦆"]
    sequences = bad_token_sequences([*words, *words], tekken.encode_text)
    assert len(set(sequences)) == len(sequences)
    assert all(sequences)
    assert max(map(len, sequences)) >= 3


def test_a_word_that_cannot_be_split_is_refused_with_its_field() -> None:
    def encode(text: str) -> list[int]:
        if "x" in text:
            raise ValueError
        return [1]

    with pytest.raises(InvalidArgumentError) as caught:
        bad_token_sequences(["a", "x"], encode)
    assert (caught.value.reason, caught.value.field) == ("TEXT_NOT_ENCODABLE", "sampling.bad_words[1]")
