"""Accounts for what a step computed: tokens, ends, and what is let go of.

Knows what a token or a failure means for a request. Does not know what is computed next (see `scheduler`), or what
computed it (see `pipeline`).
"""

from common.errors import DiptychError
from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.completions import Completions
from decoder_service.engine.endings import finish_reason, no_token_error, step_error
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import FinishReason, RequestStatus
from decoder_service.engine.step import NoToken, ScheduledBatch, StepOutput, StepResult, TokenOutput
from decoder_service.model.splice_error import SpliceError
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.scheduling.forks import part
from decoder_service.scheduling.scheduler import Scheduler


class Bookkeeper:
    """Moves requests on by what was computed of them."""

    def __init__(self, scheduler: Scheduler, prefix_cache: PrefixCache, completions: Completions) -> None:
        self._scheduler = scheduler
        self._prefix_cache = prefix_cache
        self._completions = completions
        self.num_near_ties = 0
        self.num_splice_mismatches = 0

    def update(self, batch: ScheduledBatch, result: StepResult, output: StepOutput) -> None:
        """Account for a batch that was computed; whoever has ended meanwhile gets nothing of it."""
        self.num_near_ties += result.num_near_ties
        for request, num_tokens, *_ in batch.requests:
            if request.status is RequestStatus.FINISHED:
                continue
            request.num_computed_tokens += num_tokens
            if request.placeholders:
                output.consumed.extend(request.release_features(request.num_computed_tokens))
            if request.prompt_logprobs is not None:
                request.prompt_logprobs.extend(result.prompt_logprobs.get(request.request_id, ()))
        for request, token_id in self._scheduler.drafting.kept(batch, result.token_ids):
            if request.status is RequestStatus.FINISHED:
                # With another completion that failed just now, or while it was computed ahead.
                request.is_suspect |= token_id is NoToken.NOT_FINITE
            elif isinstance(token_id, NoToken):
                if token_id is NoToken.NOT_FINITE:
                    request.num_finite_tokens, request.is_suspect = 0, True
                    self._prefix_cache.forget(request)
                self._end_failed(request, no_token_error(token_id, request), output)
            else:
                request.num_finite_tokens = request.num_computed_tokens
                self._prefix_cache.remember(request)
                if request.forks:
                    self._part(request)
                logprobs = result.logprobs.get(request.completion_id) if result.logprobs else None
                self._append(request, token_id, logprobs, output)

    def fail(self, batch: ScheduledBatch, failure: Exception, error_id: str, output: StepOutput) -> None:
        """End the requests of a batch that could not be computed."""
        self.num_splice_mismatches += isinstance(failure, SpliceError)
        for scheduled in batch.requests:
            for completion in self._completions.of(scheduled.request.request_id):
                completion.is_suspect = True  # All end, and each may have been in the batch that failed.
            self._end_failed(scheduled.request, step_error(failure, error_id), output)

    def remove(self, request: Request) -> list[ImageRef]:
        """End a completion without telling anybody; returns the images whose features it held."""
        self._completions.remove(request)
        self._scheduler.remove(request)
        for fork in request.forks:
            fork.status = RequestStatus.FINISHED
        return request.release_features(request.num_prompt_tokens)

    def remove_all(self, request_id: str) -> list[ImageRef]:
        """End all completions of a request in the same way."""
        return [ref for request in self._completions.of(request_id) for ref in self.remove(request)]

    def _part(self, request: Request) -> None:
        """Let the other completions of a prompt that is computed run beside the first one."""
        for fork in part(request):
            self._scheduler.fork(request, fork)
            self._completions.add(fork)

    def _append(self, request: Request, token_id: int, logprobs: Logprobs | None, output: StepOutput) -> None:
        request.take_token(token_id)
        prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs or (), None
        reason = finish_reason(request)
        if reason is not None:
            output.consumed.extend(self.remove(request))
        stop = token_id if reason is FinishReason.STOP else None
        is_last = reason is not None and request.request_id not in self._completions
        # By place: by name the record takes twice as long to make, for every token.
        output.tokens.append(
            TokenOutput(request.request_id, token_id, reason, stop, logprobs, prompt_logprobs, request.index, is_last)
        )

    def _end_failed(self, request: Request, error: DiptychError, output: StepOutput) -> None:
        if request.request_id in self._completions:
            output.failed.append((request.request_id, error))
            output.consumed.extend(self.remove_all(request.request_id))
