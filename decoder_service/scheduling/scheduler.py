"""Which tokens of which requests are computed next.

Knows requests and the blocks they own. Does not know who goes first (see `fair_queue`) or gives way (see `running`),
what computes the tokens, what ends a request (see `bookkeeper`), time, or how image features come and go.
"""

from collections.abc import Collection, Iterable
from heapq import heapify, heappop, heapreplace

from decoder_service.cache.block_manager import BlockManager
from decoder_service.cache.copy_on_write import CopyOnWrite
from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import RequestStatus
from decoder_service.engine.step import ScheduledBatch, StepOutput
from decoder_service.scheduling.books import check_books
from decoder_service.scheduling.image_wishes import ImageWishes
from decoder_service.scheduling.lookahead import LookAhead
from decoder_service.scheduling.room import Room
from decoder_service.scheduling.running import RunningRequests
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.scheduling.steady import SteadySteps
from decoder_service.scheduling.step_plan import StepPlan
from decoder_service.scheduling.token_counters import TokenCounters
from decoder_service.scheduling.turns import Turns
from decoder_service.scheduling.waiting import WaitingRequests
from decoder_service.speculation.drafting import Drafting


class Scheduler:
    """Picks the batch of every step.

    There are no phases. Every request has `num_tokens`, prompt and output alike, and `num_computed_tokens`
    that catches up with them; a request that has caught up gets a new token, and falls behind by one. A step
    gives every running request at least one token if any of its tokens can be computed. What is left of the
    budget goes, token by token of prompt, to the highest class, in it to the tenant that got least so far, and of
    a tenant to those that run, then to those that wait, in order of arrival. Long prompts thereby split over
    steps and mix with other requests' single tokens, a few at a time (see `StepPlan.spare_generating`).

    Between steps a running request owns exactly the blocks of its computed tokens, a waiting one owns none.
    So what the prefix cache holds for a waiting request may be gone when its turn comes. Then it asks for the
    images that it had trusted to be cached, and trusts the cache no more until it was admitted.
    """

    def __init__(self, config: SchedulerConfig, blocks: BlockManager, prefix_cache: PrefixCache) -> None:
        self.num_preemptions = 0
        self._blocks = blocks
        self._prefix_cache = prefix_cache
        self._counters = TokenCounters()
        self._waiting = WaitingRequests(self._counters)
        self._wishes = ImageWishes(self._waiting, prefix_cache)
        self._running = RunningRequests()
        self._plan = StepPlan(config, self._counters)
        self._room = Room(config, blocks, self._running, self._plan)
        self._turns = Turns(
            self._counters, running=self._running, waiting=self._waiting, room=self._room, plan=self._plan
        )
        self._copies = CopyOnWrite(blocks)
        self.ahead = LookAhead(blocks, prefix_cache, self._waiting, self._running, self._room, self._plan)
        """Plans what may begin before the step that runs is accounted for."""
        self._steady = SteadySteps(blocks=blocks, running=self._running, waiting=self._waiting, plan=self._plan)
        self.drafting = Drafting(config, blocks, self._plan, self._preempt)
        """Lets requests try tokens that nobody knows yet."""
        self._refused: Request | None = None
        """Who was to begin in this step, and found no place."""

    @property
    def num_waiting(self) -> int:
        """Requests that own no blocks."""
        return len(self._waiting)

    @property
    def waiting_by_reason(self) -> dict[str, int]:
        """How many of them wait for what."""
        return self._waiting.by_reason

    @property
    def num_running(self) -> int:
        """Requests that own blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `schedule` would find anything to do."""
        return self._running.can_move or self._waiting.could_begin

    def add(self, request: Request) -> tuple[int, ...]:
        """Let a request wait, without blocks, for its features or for its turn.

        Returns the images that it needs, in prompt order: those that the prefix cache does not cover.
        """
        self._prefix_cache.find(request)
        request.num_saved_tokens = request.num_cached_tokens
        request.want_images(request.uncovered_images)
        self._waiting.add(request)
        return request.wanted_images

    def features_arrived(self, request: Request) -> None:
        """Notice that a request holds more features than before."""
        self._waiting.features_arrived(request)

    def fork(self, request: Request, fork: Request) -> None:
        """Let `fork` run beside a running request and own its blocks too."""
        self._blocks.share(fork.block_table, request.block_table)
        self._running.add(fork)

    def set_paused(self, request: Request, *, paused: bool) -> None:
        """Compute nothing for a request while it is paused; it is the first to give way, at once if it needs images."""
        if request.status is RequestStatus.RUNNING:
            request.is_paused = paused
            if paused and request.needs_features:
                self._preempt(request)  # Others may wait for that feature memory, and cannot take it.
        elif request.is_paused != paused:
            (self._waiting.pause if paused else self._waiting.resume)(request)

    def shrink(self, batch: ScheduledBatch) -> None:
        """Keep the next steps below a batch that there was no memory for."""
        self._plan.shrink(batch.num_tokens // 2)

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it is, and free its blocks, but for one that is computed ahead right now."""
        place = self._running if request.status is RequestStatus.RUNNING else self._waiting
        place.remove(request)
        request.status = RequestStatus.FINISHED
        if not self.ahead.keep(request):
            self._prefix_cache.give_back(request)

    def schedule(self, output: StepOutput) -> ScheduledBatch:
        """Pick the next batch and allocate its blocks; writes admissions and preemptions to `output`."""
        batch = self._steady.again()
        if batch is None:
            self._refused = None
            batch = self._schedule(output)
            self._steady.remember(batch, refused=self._refused)
        return self.drafting.extend(batch)

    def _schedule(self, output: StepOutput) -> ScheduledBatch:
        """The next batch by the rules."""
        self._wishes.take_back(output)
        self._move_running()
        running = self._turns.running
        self._plan.spare_generating(self._turns.prompts(running))
        self._share_out(running, output)
        while self._waiting.ready and not self._plan:
            # All that run are stalled. The features they wait for may need memory that the ready one's
            # features take up, so one side must give way, and the ready one is the one that can move.
            self._preempt(self._running.victim())
            self._share_out((), output)
        self._wishes.take_back(output)
        return self._plan.take(self._copies.take())

    def check_integrity(self, requests: Collection[Request]) -> None:
        """Compare the books with `requests`, all that have not ended, between steps. Raises IntegrityError."""
        check_books(requests, self.ahead.leaving, self._waiting, self._running, self._blocks, self._prefix_cache)

    def _move_running(self) -> None:
        """Plan one token for every running request."""
        for request in self._running.movable:
            if request.status is not RequestStatus.RUNNING:
                continue  # It gave way just now, to one before it.
            if self._plan.budget and self._make_room(request, 1):
                self._plan.set(request, 1)
            else:
                self._preempt(request)

    def _share_out(self, requests: Iterable[Request], output: StepOutput) -> None:
        """Plan the rest of the budget, for prompts of these, which run, and of those that can begin."""
        running = [(*self._turns.of(request), place, request) for place, request in enumerate(requests)]
        heapify(running)
        admits = True
        while self._plan.budget:
            waiting = self._waiting.ready.head if admits else None
            if running:
                *turn, place, request = running[0]
                if tuple(turn) != self._turns.of(request):
                    heapreplace(running, (*self._turns.of(request), place, request))
                    continue
                if waiting is None or tuple(turn) <= self._turns.of(waiting):
                    heappop(running)
                    if request in self._plan:  # Else it gave way to one of a higher class.
                        self._lengthen(request)
                    continue
            if waiting is None:
                break
            admits = self._admit(waiting, output)

    def _lengthen(self, request: Request) -> None:
        """Plan more tokens of a running request, as many as there is room for."""
        num_tokens = self._plan.most(request)
        if not self._make_room(request, num_tokens):
            room = (len(request.block_table) + self._blocks.num_free_blocks) * self._blocks.block_size
            num_tokens = room - request.num_computed_tokens
            self._blocks.allocate(request.block_table, room)
        self._plan.set(request, num_tokens)

    def _admit(self, request: Request, output: StepOutput) -> bool:
        """Let the ready request whose turn it is run; false where it has no room, as then nobody may overtake it."""
        if not self._room.has_place(request):
            self._refused = request
            return False
        found = self._prefix_cache.find(request)
        if not request.is_ready:
            self._waiting.remove(request)
            self._wishes.wait_on(request, output)
            return True
        victims = self._room.victims_for(request, found)
        if victims is None:
            return False
        for victim in victims:
            self._preempt(victim)
        self._waiting.remove(request)
        self._prefix_cache.take(request, found)
        output.consumed.extend(request.release_covered())
        num_tokens = self._plan.most(request)
        self._blocks.allocate(request.block_table, request.num_computed_tokens + num_tokens)
        self._running.add(request)
        request.status = RequestStatus.RUNNING
        if request.num_preemptions == 0:
            output.first_scheduled.append(request.request_id)
        self._plan.set(request, num_tokens)
        return True

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Get a running request blocks to write so many tokens, those of others if need be; false if it gives way."""
        last = request.num_computed_tokens + num_tokens
        while not (self._copies.own_last_block(request) and self._blocks.allocate(request.block_table, last)):
            victim = self._running.victim()
            if victim is request:
                return False
            self._preempt(victim)
        return True

    def _preempt(self, request: Request) -> None:
        """Send a running request back to wait; its output is kept and computed again like a prompt."""
        self._plan.drop(request)
        self._copies.drop(request)
        self._running.remove(request)
        self._refused = None  # Whose place this may be.
        self._prefix_cache.give_back(request)
        request.num_computed_tokens = request.num_finite_tokens = request.num_known_blocks = 0
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self.num_preemptions += 1
        self._waiting.preempted(request)
