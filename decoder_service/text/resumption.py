"""Takes a completion up where a broken stream ended.

Knows tokens, text and the grammar's state. Does not know the engine: to it the tokens that the caller has are as those
of a request that was preempted. Random numbers, penalties and counts follow from tokens and places alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InvalidArgumentError
from decoder_service.engine.endings import finish_reason
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import TokenOutput
from decoder_service.text.text_stream import TextPiece, TextStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """What the caller has of a completion."""

    token_ids: tuple[int, ...]
    num_characters: int
    """Of their text."""
    num_messages: int
    """Of the stream."""


def take_up(request: Request, text: TextStream, resumption: Resumption) -> TextPiece:
    """Bring a new request and its text to where the caller is; returns what the caller lacks of these tokens.

    It has a finish reason where the completion had ended with them. Raises InvalidArgumentError RESUME_MISMATCH where
    this request cannot have given these tokens and this text.
    """
    token_ids = resumption.token_ids
    outputs = []
    for place, token_id in enumerate(token_ids, start=1):
        request.output_token_ids.append(token_id)
        reason = finish_reason(request)
        if reason is not None and place < len(token_ids):
            raise _mismatch("token_ids", "the completion ends before the last of them")
        is_end = reason is FinishReason.STOP
        if request.matcher is not None and not is_end and not request.matcher.take(token_id):
            raise _mismatch("token_ids", "they leave the structure")
        outputs.append(
            TokenOutput(request.request_id, token_id, finish_reason=reason, stop_token_id=token_id if is_end else None)
        )
    return _lacking(text, outputs, resumption)


def _lacking(text: TextStream, outputs: Sequence[TokenOutput], resumption: Resumption) -> TextPiece:
    piece = text.feed(outputs)
    if len(piece.token_ids) < len(outputs):
        raise _mismatch("token_ids", "the completion ends before the last of them")
    if len(piece.text) < resumption.num_characters:
        raise _mismatch("num_characters", "the tokens write fewer")
    return piece._replace(text=piece.text[resumption.num_characters :], token_ids=[])


def _mismatch(name: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "RESUME_MISMATCH", f"this stream cannot have come so far: {why}", field=f"resume_from.{name}"
    )
