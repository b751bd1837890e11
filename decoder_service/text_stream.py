"""From the tokens of one completion to its text and its end.

Knows whole characters, stop texts and which tokens write nothing. Does not know the engine or messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from decoder_service.detokenizer import Detokenizer
from decoder_service.request import FinishReason
from decoder_service.step import TokenOutput
from decoder_service.stop_checker import StopChecker
from decoder_service.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPiece:
    """What some tokens added."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    stop_text: str | None = None


class TextStream:
    """The text of one completion, as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer.token_bytes)
        self._checker = StopChecker(stops)

    def feed(self, tokens: Sequence[TokenOutput]) -> TextPiece:
        """Add tokens, in order; the piece has a finish reason if the completion ends among them.

        Tokens behind a stop text belong to nobody and are dropped. A token that ends the completion writes
        no text, whatever its bytes are.
        """
        text: list[str] = []
        token_ids: list[int] = []
        for token in tokens:
            token_ids.append(token.token_id)
            ends = token.stop_token_id is not None
            checked = self._checker.feed("" if ends else self._detokenizer.feed([token.token_id]))
            if token.finish_reason is not None and checked.stop is None:
                # What was held back for the rest of a character is told as it is, and may end a stop text.
                text.append(checked.text)
                checked = self._checker.feed(self._detokenizer.flush())
            text.append(checked.text)
            if checked.stop is not None:
                return TextPiece(
                    text="".join(text),
                    token_ids=token_ids,
                    finish_reason=FinishReason.STOP,
                    stop_text=checked.stop,
                )
            if token.finish_reason is not None:
                text.append(self._checker.flush())
                return TextPiece(
                    text="".join(text),
                    token_ids=token_ids,
                    finish_reason=token.finish_reason,
                    stop_token_id=token.stop_token_id,
                )
        return TextPiece(text="".join(text), token_ids=token_ids)
