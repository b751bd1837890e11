"""Which step can be planned while the one before it still runs.

Knows requests, blocks and who waits. Does not know what computes a step (see `pipeline`) or what its tokens are.

The one rule: a step is followed ahead where it gives every request that could move its next token, none of these needs
the host between two tokens, nobody who waits could begin, now or in a place that becomes free, and there are blocks for
all, and none to be cleared. The step ahead then gives each of them one token more, but for those whose last one is sure
to come first. In all other cases the next step is planned when this one is accounted for. So nobody gives way, is
admitted, copied or cleared while a step runs.

What ends a request unforeseen, a stop token, a caller who leaves, a row that is not finite, costs one token, which is
computed and told to nobody. Its blocks stay its own until then: that token's key and value still go there.
"""

from decoder_service.cache.block_manager import BlockManager
from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import RequestStatus
from decoder_service.engine.step import ScheduledBatch, ScheduledRequest
from decoder_service.scheduling.room import Room
from decoder_service.scheduling.running import RunningRequests
from decoder_service.scheduling.step_plan import StepPlan
from decoder_service.scheduling.waiting import WaitingRequests


class LookAhead:
    """Plans steps ahead, and keeps the blocks of those that have ended meanwhile."""

    def __init__(
        self,
        blocks: BlockManager,
        prefix_cache: PrefixCache,
        waiting: WaitingRequests,
        running: RunningRequests,
        room: Room,
        plan: StepPlan,
    ) -> None:
        self._blocks = blocks
        self._prefix_cache = prefix_cache
        self._waiting = waiting
        self._running = running
        self._room = room
        self._plan = plan
        self.leaving: list[Request] = []
        """Those that have ended, and whose blocks a step that was planned ahead still writes to."""

    def follow(self, batch: ScheduledBatch) -> ScheduledBatch | None:
        """The step after one that runs, its blocks allocated; None where it must wait for that one's tokens."""
        if not self._can_follow(batch):
            return None
        moved = [(place, each) for place, each in enumerate(batch.requests) if _is_live(each.request)]
        if len(moved) != len(self._running.movable):
            return None  # Somebody can move again, whose reader has caught up or whose image has arrived.
        rows = [(place, ScheduledRequest(each.request, 1, each.end)) for place, each in moved if not _is_last(each)]
        if len(rows) < len(moved) and self._waiting.ready:
            return None  # A place becomes free, for somebody who need not wait for one step more.
        if not rows or len(rows) > self._plan.budget or not self._allocate([each for _, each in rows]):
            return None
        places, requests = zip(*rows, strict=True)
        self._plan.charge_ahead(requests)
        return ScheduledBatch(requests, sources=places)

    def keep(self, request: Request) -> bool:
        """Keep the blocks of a request that has ended, if a step still writes to them; false where none does."""
        if request.num_ahead_tokens:
            self.leaving.append(request)
        return request.num_ahead_tokens > 0

    def settle(self, batch: ScheduledBatch) -> None:
        """Note that a step is accounted for; if it was planned ahead, those that ended meanwhile give their blocks."""
        if not batch.is_ahead:
            return
        for each in batch.requests:
            each.request.num_ahead_tokens -= 1
        for request in [request for request in self.leaving if not request.num_ahead_tokens]:
            self.leaving.remove(request)
            self._prefix_cache.give_back(request)

    def cancel(self, batch: ScheduledBatch) -> None:
        """Forget a step that goes on from one that failed, and which nobody has heard of yet."""
        for each in batch.requests:
            each.request.num_ahead_tokens -= 1
            self._blocks.trim(each.request.block_table, each.start)

    def _can_follow(self, batch: ScheduledBatch) -> bool:
        """Whether everybody in a step gets a token there and goes on by itself, and nothing is to be done between."""
        return (
            [each.request for each in batch.requests] == list(batch.sampled)
            and all(map(_goes_on_alone, batch.sampled))
            and not self._waiting.has_changed
            and not self._blocks.has_unclean
            and not self._could_begin(self._waiting.ready.head)
        )

    def _could_begin(self, request: Request | None) -> bool:
        """Whether the ready request whose turn it is would get somewhere in a step that is planned now."""
        if request is None or not self._room.has_place(request):
            return False
        num_cached_tokens = request.num_cached_tokens
        found = self._prefix_cache.find(request)
        could_begin = not request.is_ready or self._room.victims_for(request, found) is not None
        request.num_cached_tokens = num_cached_tokens  # It waits on, for what it waited for.
        return could_begin

    def _allocate(self, rows: list[ScheduledRequest]) -> bool:
        """Get every request a place for its token, or none of them."""
        blocks = self._blocks
        num_lacking = sum(blocks.num_blocks_for(each.end) - len(each.request.block_table) for each in rows)
        if num_lacking > blocks.num_free_blocks:
            return False
        for each in rows:
            blocks.allocate(each.request.block_table, each.end)
            each.request.num_ahead_tokens += 1
        return True


def _goes_on_alone(request: Request) -> bool:
    """Whether the device alone can go on from a request's next token to the one after it.

    What is counted, matched or told token by token needs the token itself first.
    """
    sampling = request.sampling
    is_told_more = sampling.logprobs is not None or request.prompt_logprobs is not None
    return request.matcher is None and not sampling.steers_logits and not is_told_more


def _is_live(request: Request) -> bool:
    return request.status is not RequestStatus.FINISHED and not request.is_paused


def _is_last(scheduled: ScheduledRequest) -> bool:
    """Whether the token that a step gives is a request's last one, whatever it is."""
    request = scheduled.request
    return scheduled.end + 1 >= request.num_prompt_tokens + request.sampling.max_tokens
