"""The engine: requests go in, every step gives tokens.

Knows the life of a request from submission to its end. Does not know which tokens are picked for a step
(see `scheduler`), what computes them (a `Runner`), text, gRPC, threads or time: whoever turns it calls
every method from one thread at a time.
"""

from common.errors import AlreadyExistsError, DiptychError
from decoder_service.cache.block_hash import HashBlock, block_hash
from decoder_service.cache.block_manager import BlockManager
from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.bookkeeper import Bookkeeper
from decoder_service.engine.completions import Completions
from decoder_service.engine.pipeline import Pipeline
from decoder_service.engine.prompt_images import Features, ImageRef
from decoder_service.engine.request import Request
from decoder_service.engine.stats import EngineStats
from decoder_service.engine.step import Launcher, Runner, StepOutput
from decoder_service.scheduling.capacity import Capacity
from decoder_service.scheduling.forks import make_forks
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
        launcher: Launcher | None = None,
        hash_block: HashBlock | None = block_hash,
        compute: str = "",
    ) -> None:
        """Take the limits and the runner; without `hash_block` there is no prefix cache.

        With a `launcher`, the runner's, steps may begin before the step before them is accounted for.
        """
        self._blocks = BlockManager(num_blocks, block_size)
        self._prefix_cache = PrefixCache(self._blocks, hash_block)
        self._scheduler = Scheduler(config, self._blocks, self._prefix_cache)
        self._completions = Completions()
        self._books = Bookkeeper(self._scheduler, self._prefix_cache, self._completions)
        self._pipeline = Pipeline(self._scheduler, self._blocks, runner, self._books, launcher=launcher)
        self._failed: dict[str, DiptychError] = {}
        self._compute = compute
        length, places = config.max_model_len, config.max_num_requests
        self.capacity = Capacity(
            max_model_len=length, num_blocks=num_blocks, block_size=block_size, max_num_requests=places
        )
        """How large a request may be."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._failed) or self._pipeline.is_busy or self._scheduler.has_work

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
        """End a request, if it has not ended, without telling anybody; returns the images whose features it held."""
        self._failed.pop(request_id, None)  # Or the next request of this name would hear of it.
        return self._books.remove_all(request_id)

    def end(self, request_id: str, index: int) -> list[ImageRef]:
        """End one of a request's completions as `abort` ends all of them."""
        request = self._completions.find(request_id, index)
        return [] if request is None else self._books.remove(request)

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
        """Schedule, execute, account.

        The step that it accounts for may have begun in the call before, and the next one may run when it returns. What
        has ended by then is computed once more, in vain, and owns its blocks until that is over.
        """
        output = StepOutput(failed=list(self._failed.items()))
        self._failed.clear()
        self._pipeline.turn(output)
        return output

    def stats(self) -> EngineStats:
        """How full the engine is and what it has done."""
        drafts = self._scheduler.drafting.counts
        return EngineStats(
            num_waiting=self._scheduler.num_waiting,
            waiting_by_reason=self._scheduler.waiting_by_reason,
            num_running=self._scheduler.num_running,
            num_free_blocks=self._blocks.num_free_blocks,
            num_blocks=self._blocks.num_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._pipeline.num_steps,
            num_steps_ahead=self._pipeline.num_steps_ahead,
            num_splice_mismatches=self._books.num_splice_mismatches,
            num_batched_tokens=self._pipeline.num_batched_tokens,
            num_near_ties=self._books.num_near_ties,
            compute=self._compute,
            num_queried_tokens=self._prefix_cache.num_queried_tokens,
            num_hit_tokens=self._prefix_cache.num_hit_tokens,
            num_evicted_blocks=self._blocks.num_evictions,
            num_images_covered=self._prefix_cache.num_images_covered,
            num_drafts=drafts.num_drafts,
            num_draft_tokens=drafts.num_draft_tokens,
            num_accepted_tokens=drafts.num_accepted_tokens,
        )

    @property
    def num_batched_tokens(self) -> int:
        """Tokens that the last `step` computed; 0 where it had nothing to compute."""
        return self._pipeline.num_batched_tokens

    def count_owned_blocks(self) -> int:
        """KV blocks in the tables of the requests; with the free ones all there are. Call between steps."""
        owners = (*self._completions.all(), *self._scheduler.ahead.leaving)
        return len({block_id for request in owners for block_id in request.block_table})

    def check_integrity(self) -> None:
        """Compare all books with each other, between steps; raises IntegrityError."""
        self._scheduler.check_integrity(self._completions.all())
