"""From the tokens of one completion to its text and its end.

Knows whole characters, stop texts and which tokens write nothing. Does not know the engine or messages.
"""

from collections.abc import Sequence
from typing import NamedTuple

from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import TokenOutput
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.text.detokenizer import Detokenizer
from decoder_service.text.stop_checker import Checked, StopChecker


class TextPiece(NamedTuple):
    """What some tokens added."""

    text: str
    token_ids: list[int]
    logprobs: list[Logprobs]
    """One for each token, or none at all."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    stop_text: str | None = None
    prompt_logprobs: Sequence[Logprobs] = ()
    """With the first token, where they are asked for."""


class TextStream:
    """The text of one completion, as its tokens come."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        *,
        continues: bool = False,
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """Start a completion; it `continues` a text of the caller's, or is a text of its own.

        The stop texts are part of the text or not; none ends it before `min_tokens` tokens have come.
        """
        self._detokenizer = Detokenizer(tokenizer.texts, first=not continues)
        self._checker = StopChecker(stops)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def feed(self, tokens: Sequence[TokenOutput]) -> TextPiece:
        """Add tokens, in order; the piece has a finish reason if the completion ends among them.

        Tokens behind a stop text belong to nobody and are dropped. A token that ends the completion writes
        no text, whatever its bytes are, unless what stops it is to be included.
        """
        if len(tokens) == 1 and tokens[0].finish_reason is None and self._checker.looks_for_nothing:
            # As nearly always. Tokens need not be counted, which is done for stop texts alone.
            (token,) = tokens
            return TextPiece(
                self._detokenizer.add(token.token_id),
                [token.token_id],
                [] if token.logprobs is None else [token.logprobs],
                prompt_logprobs=token.prompt_logprobs,
            )
        text: list[str] = []
        for num_read, token in enumerate(tokens, start=1):
            checked = self._read(token)
            if token.finish_reason is not None and checked.stop is None:
                # What was held back for the rest of a character is told as it is, and may end a stop text.
                text.append(checked.text)
                checked = self._check(self._detokenizer.flush())
            text.append(checked.text)
            if checked.stop is not None:
                text.append(checked.stop if self._include_stop else "")
                return _piece(text, tokens[:num_read], FinishReason.STOP, stop_text=checked.stop)
            if token.finish_reason is not None:
                text.append(self._checker.flush())
                return _piece(text, tokens[:num_read], token.finish_reason, stop_token_id=token.stop_token_id)
        return _piece(text, tokens, None)

    def _read(self, token: TokenOutput) -> Checked:
        self._num_tokens += 1
        writes = token.stop_token_id is None or self._include_stop
        return self._check(self._detokenizer.add(token.token_id) if writes else "")

    def _check(self, text: str) -> Checked:
        """Look for stop texts, behind the first tokens alone, which nothing ends."""
        return self._checker.feed(text) if self._num_tokens > self._min_tokens else Checked(text, None)


def _piece(
    text: Sequence[str],
    tokens: Sequence[TokenOutput],
    finish_reason: FinishReason | None,
    *,
    stop_token_id: int | None = None,
    stop_text: str | None = None,
) -> TextPiece:
    return TextPiece(
        text="".join(text),
        token_ids=[token.token_id for token in tokens],
        finish_reason=finish_reason,
        stop_token_id=stop_token_id,
        stop_text=stop_text,
        # The first token tells whether any are asked for.
        logprobs=[token.logprobs for token in tokens if token.logprobs is not None]
        if tokens and tokens[0].logprobs is not None
        else [],
        prompt_logprobs=tokens[0].prompt_logprobs if tokens else (),
    )
