"""Which tokens of which requests are computed next.

Knows requests, their order and the blocks they own. Does not know what computes the tokens, what ends a
request (see `engine`), time, or how image features come and go.
"""

from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass
from operator import attrgetter

from common.errors import InvalidArgumentError
from decoder_service.block_manager import BlockManager, IntegrityError
from decoder_service.prefix_cache import PrefixCache
from decoder_service.request import Request, RequestStatus
from decoder_service.step import ScheduledBatch, ScheduledRequest, StepOutput, WantedImages

_arrival = attrgetter("arrival")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of a step and of a request."""

    max_num_batched_tokens: int
    """Most tokens in a step."""
    max_num_requests: int
    """Most requests that run at once."""
    max_model_len: int
    """Most tokens of a request, prompt and output together."""

    def __post_init__(self) -> None:
        if self.max_num_requests < 1 or self.max_model_len < 1:
            raise ValueError("max_num_requests and max_model_len must be 1 or more")
        if self.max_num_batched_tokens < self.max_num_requests:
            # Every running request moves in every step, so each needs room for a token.
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below "
                f"max_num_requests {self.max_num_requests}"
            )


def check_fits(num_prompt_tokens: int, max_tokens: int, *, limit: int) -> None:
    """Refuse what could never run to its end: raises InvalidArgumentError PROMPT_TOO_LONG.

    `limit` is the most tokens that one request may have, see `Engine.max_request_tokens`.
    """
    num_tokens = num_prompt_tokens + max_tokens
    if num_tokens > limit:
        raise InvalidArgumentError(
            "PROMPT_TOO_LONG",
            f"the prompt and max_tokens make {num_tokens} tokens together, {limit} is the most",
            metadata={"limit": limit, "got": num_tokens},
        )


class Scheduler:
    """Picks the batch of every step.

    There are no phases. Every request has `num_tokens`, prompt and output alike, and `num_computed_tokens`
    that catches up with them; a request that has caught up gets a new token, and falls behind by one. A step
    gives every running request at least one token if any of its tokens can be computed, what is left of
    the budget goes to the oldest first, then to waiting requests in order of arrival. Long prompts thereby
    split over steps, mix with other requests' single tokens and never hold them up.

    Between steps a running request owns exactly the blocks of its computed tokens, a waiting one owns none.
    So what the prefix cache holds for a waiting request may be gone when its turn comes. Then it asks for the
    images that it had trusted to be cached, and trusts the cache no more until it was admitted.
    """

    def __init__(self, config: SchedulerConfig, blocks: BlockManager, prefix_cache: PrefixCache) -> None:
        self.num_preemptions = 0
        self._config = config
        self._blocks = blocks
        self._prefix_cache = prefix_cache
        # A step looks at the running ones and at the head of the ready ones, and at no other: ten
        # thousand that wait cost it nothing. Both lists are in order of arrival.
        self._awaiting_features: dict[str, Request] = {}
        self._ready: list[Request] = []
        self._running: list[Request] = []
        self._preempted: list[Request] = []  # In this step; empty between steps.

    @property
    def num_waiting(self) -> int:
        """Requests that own no blocks."""
        return len(self._awaiting_features) + len(self._ready)

    @property
    def num_running(self) -> int:
        """Requests that own blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `schedule` would find anything to compute."""
        return bool(self._ready) or any(not request.is_stalled for request in self._running)

    def add(self, request: Request) -> tuple[int, ...]:
        """Let a request wait, without blocks, for its features or for its turn.

        Returns the images that it needs, in prompt order: those that the prefix cache does not cover.
        """
        self._prefix_cache.find(request)
        request.num_saved_tokens = request.num_cached_tokens
        wanted_images = request.want_images()
        self._queue(request)
        return wanted_images

    def _queue(self, request: Request) -> None:
        if request.is_ready:
            insort(self._ready, request, key=_arrival)
        else:
            self._awaiting_features[request.request_id] = request

    def features_arrived(self, request: Request) -> None:
        """Notice that a request holds more features than before."""
        if request.is_ready and request.request_id in self._awaiting_features:
            insort(self._ready, self._awaiting_features.pop(request.request_id), key=_arrival)

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it is, and free its blocks."""
        if request.status is RequestStatus.RUNNING:
            self._running.remove(request)
        elif self._awaiting_features.pop(request.request_id, None) is None:
            self._ready.remove(request)
        self._blocks.free(request.block_table)
        request.status = RequestStatus.FINISHED

    def schedule(self, output: StepOutput) -> ScheduledBatch:
        """Pick the next batch and allocate its blocks; writes admissions and preemptions to `output`."""
        scheduled: list[ScheduledRequest] = []
        self._continue_running(scheduled, output)
        self._admit_ready(scheduled, output)
        while self._ready and not scheduled:
            # All that run are stalled. The features they wait for may need memory that the ready one's
            # features take up, so one side must give way, and the ready one is the one that can move.
            self._preempt(self._running[-1], output)
            self._admit_ready(scheduled, output)
        self._requeue_preempted(output)
        return ScheduledBatch(tuple(scheduled))

    def check_integrity(self, requests: Collection[Request]) -> None:
        """Compare the books with `requests`, all that have not ended. Call between steps.

        Raises IntegrityError.
        """
        places = [*self._awaiting_features.values(), *self._ready, *self._running]
        if len(places) != len(requests) or set(places) != set(requests):
            raise IntegrityError("a request is in no place, or in two")
        for queue in (self._ready, self._running):
            if queue != sorted(queue, key=_arrival):
                raise IntegrityError("a queue is not in order of arrival")
        for request in requests:
            self._check_request(request)
        self._blocks.check_integrity(request.block_table for request in requests)
        self._prefix_cache.check_integrity(requests)

    def _continue_running(self, scheduled: list[ScheduledRequest], output: StepOutput) -> None:
        budget = self._config.max_num_batched_tokens
        movable = [request for request in self._running if not request.is_stalled]
        for num_younger, request in zip(reversed(range(len(movable))), movable, strict=True):
            if request.status is not RequestStatus.RUNNING:
                continue  # Preempted by an older one, just now.
            # A token is kept back for each of the younger.
            num_tokens = min(request.num_schedulable_tokens, budget - num_younger)
            if self._make_room(request, request.num_computed_tokens + num_tokens, output):
                scheduled.append(ScheduledRequest(request, num_tokens))
                budget -= num_tokens

    def _admit_ready(self, scheduled: list[ScheduledRequest], output: StepOutput) -> None:
        budget = self._config.max_num_batched_tokens - sum(each.num_scheduled_tokens for each in scheduled)
        while self._ready and budget and len(self._running) < self._config.max_num_requests:
            request = self._ready[0]
            found = self._prefix_cache.find(request)
            if not request.is_ready:
                self._await_features(self._ready.pop(0), output)
                continue
            # Blocks are taken step by step, but all that it needs for its known tokens must be free: else
            # it would run out halfway and be computed again. Nobody overtakes it, or it would never start.
            if not self._blocks.fits(request.num_tokens, found):
                break
            self._prefix_cache.take(request, found)
            output.consumed.extend(request.release_covered())
            num_tokens = min(request.num_schedulable_tokens, budget)
            self._blocks.allocate(request.block_table, request.num_computed_tokens + num_tokens)
            insort(self._running, self._ready.pop(0), key=_arrival)
            request.status = RequestStatus.RUNNING
            if request.num_preemptions == 0:
                output.first_scheduled.append(request.request_id)
            scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens

    def _make_room(self, request: Request, num_tokens: int, output: StepOutput) -> bool:
        """Allocate for `num_tokens` tokens of a running request; false where it had to give way itself.

        The stalled go first, as they cannot use their blocks; then the youngest, so that the oldest
        request always gets to its end. Neither has been scheduled in this step yet.
        """
        while not self._blocks.allocate(request.block_table, num_tokens):
            youngest = self._running[-1]
            victim = next((other for other in reversed(self._running) if other.is_stalled), youngest)
            self._preempt(victim, output)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request, output: StepOutput) -> None:
        """Send a running request back to wait; its output is kept and computed again like a prompt."""
        self._running.remove(request)
        self._blocks.free(request.block_table)
        output.consumed.extend(request.release_features(request.num_prompt_tokens))
        request.num_computed_tokens = request.num_known_blocks = 0
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self.num_preemptions += 1
        self._preempted.append(request)

    def _requeue_preempted(self, output: StepOutput) -> None:
        """Let what was preempted in this step wait, for the images that what is left of its blocks does not cover."""
        for request in self._preempted:
            self._prefix_cache.find(request)
            self._want_anew(request, output)
            self._queue(request)
        self._preempted.clear()

    def _await_features(self, request: Request, output: StepOutput) -> None:
        """Let a request whose turn has come wait on, as the prefix cache no longer holds what it held."""
        if not set(request.uncovered_images) <= set(request.wanted_images):
            request.num_cached_tokens = 0
            output.consumed.extend(request.release_features(request.num_prompt_tokens))
            self._want_anew(request, output)
        self._queue(request)

    def _want_anew(self, request: Request, output: StepOutput) -> None:
        if request.placeholders:
            output.wanted.append(WantedImages(request.request_id, request.want_images()))

    def _check_request(self, request: Request) -> None:
        is_running = request in self._running
        if request.status is not (RequestStatus.RUNNING if is_running else RequestStatus.WAITING):
            raise IntegrityError(f"request {request.request_id} is {request.status.name} in the wrong place")
        if not is_running and (request.request_id in self._awaiting_features) == request.is_ready:
            raise IntegrityError(f"request {request.request_id} waits for the wrong thing")
        if not is_running and request.num_computed_tokens:
            raise IntegrityError(f"request {request.request_id} waits with computed tokens")
        if len(request.block_table) != self._blocks.num_blocks_for(request.num_computed_tokens):
            raise IntegrityError(
                f"request {request.request_id} owns {len(request.block_table)} blocks "
                f"for {request.num_computed_tokens} computed tokens"
            )
