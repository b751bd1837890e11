"""The messages of one request's stream, numbered.

Knows protobuf and what is counted. Does not know when a message is due.
"""

from collections import Counter
from collections.abc import Sequence

from common.features.wire_types import grid_to_proto
from decoder_service.engine.request_status import FinishReason
from decoder_service.engine.timings import Timings
from decoder_service.prompt.prompt import Prompt
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.text.resumption import Resumption
from decoder_service.text.text_stream import TextPiece
from diptych.v1 import generation_pb2 as pb

PROMPT_LOGPROBS_PER_DELTA = 2048
"""Keeps a message of a long prompt below half a megabyte."""

_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}


class Replies:
    """Makes the messages in the order of the contract: one prompt, deltas, one finish for each completion."""

    def __init__(self, request_id: str, prompt: Prompt, *, resumption: Resumption | None = None) -> None:
        """Begin a stream, or go on with one."""
        self._request_id = request_id
        self._prompt = prompt
        self._seq = resumption.num_messages if resumption else 0
        self._num_known = len(resumption.token_ids) if resumption else 0
        self._completion_tokens: Counter[int] = Counter({0: self._num_known})

    @property
    def num_completion_tokens(self) -> int:
        """Tokens told so far, of all completions."""
        return self._completion_tokens.total()

    def num_new_tokens(self, index: int) -> int:
        """Tokens of a completion that this call has told."""
        return self._completion_tokens[index] - (self._num_known if index == 0 else 0)

    def prompt(self, *, cached_tokens: int) -> pb.GenerateResponse:
        """The first message."""
        info = pb.PromptInfo(
            request_id=self._request_id,
            prompt_tokens=len(self._prompt.token_ids),
            grids=[grid_to_proto(span.grid) for span in self._prompt.placeholders],
            cached_tokens=cached_tokens,
        )
        return self._numbered(pb.GenerateResponse(prompt=info))

    def deltas(self, piece: TextPiece, *, index: int = 0) -> list[pb.GenerateResponse]:
        """More of a completion; before it, where there are any, the log probabilities of the prompt."""
        messages = self._prompt_logprobs(piece.prompt_logprobs, index) if piece.prompt_logprobs else []
        self._completion_tokens[index] += len(piece.token_ids)
        # Filled in place: a delta that is made first and then put into its message takes twice as long.
        response = pb.GenerateResponse(seq=self._seq, index=index)
        self._seq += 1
        delta = response.delta
        delta.text = piece.text
        delta.token_ids.extend(piece.token_ids)
        if piece.logprobs:
            delta.logprobs.extend(map(_logprobs, piece.logprobs))
        messages.append(response)
        return messages

    def finish(
        self, piece: TextPiece, timings: Timings, *, cached_tokens: int, images_not_encoded: int, index: int = 0
    ) -> pb.GenerateResponse:
        """The last message of a completion, for the piece that has a finish reason."""
        if piece.finish_reason is None:
            raise ValueError("a finish needs a reason")
        finish = pb.Finish(
            reason=_REASONS[piece.finish_reason],
            usage=pb.Usage(
                prompt_tokens=len(self._prompt.token_ids),
                image_tokens=self._prompt.num_image_tokens,
                cached_tokens=cached_tokens,
                images_not_encoded=images_not_encoded,
                completion_tokens=self._completion_tokens[index],
            ),
            timings=pb.Timings(
                queue_seconds=timings.queue,
                encode_wait_seconds=timings.encode_wait,
                prefill_seconds=timings.prefill,
                decode_seconds=timings.decode,
            ),
        )
        if piece.stop_token_id is not None:
            finish.stop_token_id = piece.stop_token_id
        elif piece.stop_text is not None:
            finish.stop_text = piece.stop_text
        return self._numbered(pb.GenerateResponse(index=index, finish=finish))

    def _prompt_logprobs(self, logprobs: Sequence[Logprobs], index: int) -> list[pb.GenerateResponse]:
        parts = [
            logprobs[start : start + PROMPT_LOGPROBS_PER_DELTA]
            for start in range(0, len(logprobs), PROMPT_LOGPROBS_PER_DELTA)
        ]
        return [
            self._numbered(pb.GenerateResponse(index=index, delta=pb.Delta(prompt_logprobs=map(_logprobs, part))))
            for part in parts
        ]

    def _numbered(self, response: pb.GenerateResponse) -> pb.GenerateResponse:
        response.seq = self._seq
        self._seq += 1
        return response


def _logprobs(logprobs: Logprobs) -> pb.Logprobs:
    return pb.Logprobs(
        logprob=logprobs.logprob, top_token_ids=logprobs.top_token_ids, top_logprobs=logprobs.top_logprobs
    )
