"""The engine: requests go in, every step gives tokens.

Knows the life of a request from submission to its end. Does not know which tokens are picked for a step
(see `scheduler`), what computes them (a `Runner`), text, gRPC, threads or time: whoever turns it calls
every method from one thread at a time.
"""

from common.errors import AlreadyExistsError, DiptychError
from decoder_service.cache.block_hash import HashBlock, block_hash
from decoder_service.cache.block_manager import BlockManager
from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.completions import Completions
from decoder_service.engine.containment import run_contained
from decoder_service.engine.endings import finish_reason, no_token_error, step_error
from decoder_service.engine.request import Features, ImageRef, Request
from decoder_service.engine.request_status import FinishReason, RequestStatus
from decoder_service.engine.stats import EngineStats
from decoder_service.engine.step import (
    NoToken,
    Runner,
    ScheduledBatch,
    StepOutput,
    StepResult,
    TokenOutput,
)
from decoder_service.model.splice_error import SpliceError
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.scheduling.capacity import Capacity
from decoder_service.scheduling.forks import make_forks, part
from decoder_service.scheduling.scheduler import Scheduler
from decoder_service.scheduling.scheduler_config import SchedulerConfig


class Engine:
    """Continuous batching over a paged KV cache of `num_blocks` blocks of `block_size` tokens.

    Every submitted request ends exactly once: with an error in `StepOutput.failed`, by `abort`, or when each of its
    completions has ended, with a finish reason in `StepOutput.tokens` or by `end`; an error of one ends them all.
    Features that were taken are given back once: in `StepOutput.consumed`, or by `abort`, `end` or `fail`.
    """

    def __init__(
        self,
        *,
        config: SchedulerConfig,
        num_blocks: int,
        block_size: int,
        runner: Runner,
        hash_block: HashBlock | None = block_hash,
        compute: str = "",
    ) -> None:
        """Take the limits and the runner; without `hash_block` there is no prefix cache."""
        self._blocks = BlockManager(num_blocks, block_size)
        self._prefix_cache = PrefixCache(self._blocks, hash_block)
        self._scheduler = Scheduler(config, self._blocks, self._prefix_cache)
        self._runner = runner
        self._completions = Completions()
        self._failed: dict[str, DiptychError] = {}
        self._num_steps = self._num_batched_tokens = 0
        self._num_near_ties = self._num_splice_mismatches = 0
        self._compute = compute
        length, places = config.max_model_len, config.max_num_requests
        self.capacity = Capacity(
            max_model_len=length, num_blocks=num_blocks, block_size=block_size, max_num_requests=places
        )
        """How large a request may be."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._failed) or self._scheduler.has_work

    def submit(self, request: Request) -> tuple[int, ...]:
        """Queue a request; returns the images whose features it needs, in prompt order.

        The others' tokens are in the prefix cache; should they be gone when they are needed, a step wants them.
        Raises what `Capacity.check` raises, and AlreadyExistsError where a request of this name has not ended.
        """
        self.capacity.check(request.num_prompt_tokens, request.sampling.max_tokens, n=request.sampling.n)
        if request.request_id in self._completions or request.request_id in self._failed:
            raise AlreadyExistsError("REQUEST_EXISTS", "a request with this request_id is running")
        request.forks = make_forks(request)
        self._completions.add(request)
        return self._scheduler.add(request)

    def features_arrived(
        self, request_id: str, image_index: int, features: Features, *, index: int = 0, fetch: int | None = None
    ) -> bool:
        """Hand over an image's features; false where nobody needs them, and they stay the caller's.

        When a step says that images are `wanted`, fetches of that completion that still go on are void: end
        them, hand over nothing that they bring, and fetch the wanted images. What the `fetch`th fetch brings,
        counted from 1, is needed only if it was the last. If memory is reserved for a completion's images in prompt
        order, first come first served, and holds any one request's images together, all get theirs in the end.
        """
        request = self._completions.find(request_id, index)
        is_late = request is None or fetch not in (None, request.num_fetches)
        if request is None or is_late or not request.take_features(image_index, features):
            return False
        self._scheduler.features_arrived(request)
        return True

    def abort(self, request_id: str) -> list[ImageRef]:
        """End a request without a word, if it has not ended; returns the images whose features it held."""
        self._failed.pop(request_id, None)  # Or the next request of this name would hear of it.
        return [ref for request in self._completions.of(request_id) for ref in self._remove(request)]

    def end(self, request_id: str, index: int) -> list[ImageRef]:
        """End one of a request's completions as `abort` ends all of them."""
        request = self._completions.find(request_id, index)
        return [] if request is None else self._remove(request)

    def set_paused(self, request_id: str, *, paused: bool) -> None:
        """Compute nothing more of a request while it is paused; its blocks stay until others need them."""
        for request in self._completions.of(request_id):
            self._scheduler.set_paused(request, paused=paused)

    def fail(self, request_id: str, error: DiptychError) -> list[ImageRef]:
        """End a request as `abort` does; the next step reports the error."""
        if request_id not in self._completions:
            return []
        refs = self.abort(request_id)
        self._failed[request_id] = error
        return refs

    def step(self) -> StepOutput:
        """Schedule, execute, account."""
        output = StepOutput(failed=list(self._failed.items()))
        self._failed.clear()
        batch = self._scheduler.schedule(output)
        self._num_batched_tokens = batch.num_tokens
        if unclean := self._blocks.take_unclean():
            self._runner.clear(unclean)
        if batch.requests:
            self._num_steps += 1
            error_id = f"step-{self._num_steps}"
            for part in run_contained(self._runner, batch, error_id=error_id, on_no_memory=self._scheduler.shrink):
                if isinstance(part.outcome, StepResult):
                    self._update(part.batch, part.outcome, output)
                else:
                    self._num_splice_mismatches += isinstance(part.outcome, SpliceError)
                    self._fail_part(part.batch, part.outcome, error_id, output)
        return output

    def stats(self) -> EngineStats:
        """How full the engine is and what it has done."""
        return EngineStats(
            num_waiting=self._scheduler.num_waiting,
            waiting_by_reason=self._scheduler.waiting_by_reason,
            num_running=self._scheduler.num_running,
            num_free_blocks=self._blocks.num_free_blocks,
            num_blocks=self._blocks.num_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
            num_splice_mismatches=self._num_splice_mismatches,
            num_batched_tokens=self._num_batched_tokens,
            num_near_ties=self._num_near_ties,
            compute=self._compute,
            num_queried_tokens=self._prefix_cache.num_queried_tokens,
            num_hit_tokens=self._prefix_cache.num_hit_tokens,
            num_evicted_blocks=self._blocks.num_evictions,
            num_images_covered=self._prefix_cache.num_images_covered,
        )

    @property
    def num_batched_tokens(self) -> int:
        """Tokens that the last `step` computed; 0 where it had nothing to compute."""
        return self._num_batched_tokens

    def count_owned_blocks(self) -> int:
        """KV blocks in the tables of the requests; with the free ones all there are. Call between steps."""
        return len({block_id for request in self._completions.all() for block_id in request.block_table})

    def check_integrity(self) -> None:
        """Compare all books with each other, between steps; raises IntegrityError."""
        self._scheduler.check_integrity(self._completions.all())

    def _update(self, batch: ScheduledBatch, result: StepResult, output: StepOutput) -> None:
        self._num_near_ties += result.num_near_ties
        for request, num_tokens in batch.requests:
            request.num_computed_tokens += num_tokens
            if request.placeholders:
                output.consumed.extend(request.release_features(request.num_computed_tokens))
            if request.prompt_logprobs is not None:
                request.prompt_logprobs.extend(result.prompt_logprobs.get(request.request_id, ()))
        for request, token_id in zip(batch.sampled, result.token_ids, strict=True):
            if request.status is RequestStatus.FINISHED:
                continue  # With another completion that failed just now.
            if isinstance(token_id, NoToken):
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
            output.consumed.extend(self._remove(request))
        stop = token_id if reason is FinishReason.STOP else None
        output.tokens.append(
            TokenOutput(
                request.request_id,
                token_id,
                finish_reason=reason,
                stop_token_id=stop,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                index=request.index,
                is_last=reason is not None and request.request_id not in self._completions,
            )
        )

    def _fail_part(self, part: ScheduledBatch, failure: Exception, error_id: str, output: StepOutput) -> None:
        for scheduled in part.requests:
            for completion in self._completions.of(scheduled.request.request_id):
                completion.is_suspect = True  # All end, and each may have been in the batch that failed.
            self._end_failed(scheduled.request, step_error(failure, error_id), output)

    def _end_failed(self, request: Request, error: DiptychError, output: StepOutput) -> None:
        if request.request_id in self._completions:
            output.failed.append((request.request_id, error))
            output.consumed.extend(self.abort(request.request_id))

    def _remove(self, request: Request) -> list[ImageRef]:
        self._completions.remove(request)
        self._scheduler.remove(request)
        for fork in request.forks:
            fork.status = RequestStatus.FINISHED
        return request.release_features(request.num_prompt_tokens)
