"""From the tokens of a request to the messages that answer it.

Knows which completion a token belongs to and what is due when one ends. Does not know where tokens come from (see
`generation`), what they write (see `text_stream`) or how a message is made (see `replies`).
"""

from collections.abc import Iterable, Iterator, Sequence

from decoder_service.api.replies import Replies
from decoder_service.engine.generation import Generation
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.step import TokenOutput
from decoder_service.prompt.prompt import Prompt
from decoder_service.telemetry.request_watch import RequestWatch
from decoder_service.text.text_stream import TextPiece, TextStream
from diptych.v1 import generation_pb2 as pb


class Answer:
    """What one caller is told."""

    def __init__(
        self,
        replies: Replies,
        texts: Sequence[TextStream],
        *,
        prompt: Prompt,
        generation: Generation,
        watch: RequestWatch,
    ) -> None:
        """Take the messages, and the text of each completion."""
        self._replies = replies
        self._texts = dict(enumerate(texts))
        self._prompt = prompt
        self._generation = generation
        self._watch = watch

    @property
    def is_complete(self) -> bool:
        """Whether every completion has ended."""
        return not self._texts

    def begins(self) -> None:
        """Let it be known that the request is let in: the engine has it, or need not have it."""
        self._watch.admitted(
            at=self._generation.submitted_at,
            prompt_tokens=len(self._prompt.token_ids),
            num_images=len(self._prompt.images),
            count_completion_tokens=lambda: self._replies.num_completion_tokens,
        )

    def messages(self, tokens: Sequence[TokenOutput]) -> Iterable[pb.GenerateResponse]:
        """What is due after these tokens, of which there is at least one; those of an ended completion are dropped."""
        self._watch.first_token()
        if len(tokens) > 1:
            return self._of_several(tokens)
        index = tokens[0].index
        text = self._texts.get(index)
        return () if text is None else self._tell(index, text.feed(tokens))

    def goes_on(self, piece: TextPiece) -> Iterable[pb.GenerateResponse]:
        """The text that the caller lacks of the tokens that it has; there is one completion."""
        return self._tell(0, piece)

    def _of_several(self, tokens: Sequence[TokenOutput]) -> Iterator[pb.GenerateResponse]:
        own: dict[int, list[TokenOutput]] = {}
        for token in tokens:
            own.setdefault(token.index, []).append(token)
        for index in sorted(self._texts.keys() & own):
            yield from self._tell(index, self._texts[index].feed(own[index]))

    def _tell(self, index: int, piece: TextPiece) -> Iterable[pb.GenerateResponse]:
        deltas = self._replies.deltas(piece, index=index)
        return deltas if piece.finish_reason is None else self._last(index, piece, piece.finish_reason, deltas)

    def _last(
        self, index: int, piece: TextPiece, reason: FinishReason, deltas: list[pb.GenerateResponse]
    ) -> Iterator[pb.GenerateResponse]:
        """A completion's last text and its end, which comes when the text is sent."""
        yield from deltas
        generation = self._generation
        del self._texts[index]
        generation.end(index)
        if self.is_complete:
            self._watch.finished(
                reason,
                generation.timings(index),
                prompt_tokens=len(self._prompt.token_ids),
                cached_tokens=generation.num_cached_tokens,
                images_not_encoded=generation.num_images_not_encoded,
                completion_tokens=self._replies.num_completion_tokens,
                timed_tokens=self._replies.num_new_tokens(index),
            )
        yield self._replies.finish(
            piece,
            generation.timings(index),
            cached_tokens=generation.num_cached_tokens,
            images_not_encoded=generation.num_images_not_encoded,
            index=index,
        )
