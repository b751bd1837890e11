"""Where a completion's text ends, and which tokens and log probabilities are told with it."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import pytest

from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import TokenOutput
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.text.text_stream import TextPiece, TextStream

WORDS = ["one ", "two", " END", "three", " END", " four"]


@pytest.fixture
def run(tekken: Tokenizer) -> Any:  # noqa: ANN401
    return partial(run_words, tekken)


def run_words(tokenizer: Tokenizer, words: Sequence[str], *, stop_last: bool = False, **options: Any) -> TextPiece:  # noqa: ANN401
    """All that a stream says of words, token by token and at once; the last token ends it."""
    tokens = [token_id for word in words for token_id in tokenizer.encode_text(word)]
    last = len(tokens) - 1
    outputs = [
        TokenOutput(
            "r",
            token_id,
            finish_reason=(FinishReason.STOP if stop_last else FinishReason.LENGTH) if index == last else None,
            stop_token_id=token_id if stop_last and index == last else None,
            logprobs=Logprobs(-float(index)),
            prompt_logprobs=[Logprobs(-100.0)] * 3 if index == 0 else (),
        )
        for index, token_id in enumerate(tokens)
    ]
    whole = TextStream(tokenizer, **options).feed(outputs)
    stream = TextStream(tokenizer, **options)
    pieces = []
    for output in outputs:
        pieces.append(stream.feed([output]))
        if pieces[-1].finish_reason is not None:
            break
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token_id for piece in pieces for token_id in piece.token_ids] == whole.token_ids
    assert [each.logprob for each in whole.logprobs] == [-float(index) for index in range(len(whole.token_ids))]
    assert [each for piece in pieces for each in piece.logprobs] == whole.logprobs
    assert [len(piece.prompt_logprobs) for piece in pieces] == [3, *[0] * (len(pieces) - 1)]
    assert len(whole.prompt_logprobs) == 3
    assert pieces[-1].stop_text == whole.stop_text
    return whole


@pytest.mark.parametrize(("include_stop", "text"), [(False, "one two"), (True, "one two END")])
def test_a_stop_text_is_part_of_the_text_if_asked(run: Any, include_stop: bool, text: str) -> None:  # noqa: ANN401
    piece = run(WORDS, stops=[" END"], include_stop=include_stop)
    assert (piece.text, piece.stop_text, piece.finish_reason) == (text, " END", FinishReason.STOP)


@pytest.mark.parametrize(("include_stop", "text"), [(False, "one two"), (True, "one two END")])
def test_so_is_what_a_stop_token_writes(run: Any, include_stop: bool, text: str) -> None:  # noqa: ANN401
    piece = run(["one ", "two", " END"], stops=["never"], stop_last=True, include_stop=include_stop)
    assert piece.text == text
    assert piece.stop_token_id is not None


def test_no_stop_text_counts_in_the_first_tokens(run: Any, tekken: Tokenizer) -> None:  # noqa: ANN401
    ends = list(accumulate(len(tekken.encode_text(word)) for word in WORDS))
    stop = partial(run, WORDS, stops=[" END"])
    for min_tokens in range(ends[-1] + 1):
        text = stop(min_tokens=min_tokens).text
        if min_tokens <= ends[1]:
            assert text == "one two"
        elif ends[2] <= min_tokens <= ends[3]:
            assert text == "one two ENDthree"
        elif min_tokens >= ends[4]:
            assert text == "".join(WORDS)
        piece = stop(min_tokens=min_tokens)
        assert piece.stop_text is None or len(piece.token_ids) > min_tokens


def test_without_stop_texts_every_token_is_told_at_once(run: Any) -> None:  # noqa: ANN401
    piece = run(WORDS, stops=[])
    assert (piece.text, piece.finish_reason) == ("".join(WORDS), FinishReason.LENGTH)
