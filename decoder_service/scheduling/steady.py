"""The last step over again, where nothing has changed but that everybody has one token more.

Knows when that is so. Does not know queues or who gives way (see `scheduler`), which has the last word otherwise. In
nearly every step all that run get their next token and nobody else could begin, as nobody waits or there is no place;
to find just that by the rules takes several times as long, for each request of each step.
"""

from decoder_service.cache.block_manager import BlockManager
from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch
from decoder_service.scheduling.running import RunningRequests
from decoder_service.scheduling.step_plan import StepPlan
from decoder_service.scheduling.waiting import WaitingRequests


class SteadySteps:
    """Gives a batch again as long as the scheduler would come to the same one."""

    def __init__(
        self, *, blocks: BlockManager, running: RunningRequests, waiting: WaitingRequests, plan: StepPlan
    ) -> None:
        self._blocks = blocks
        self._running = running
        self._waiting = waiting
        self._plan = plan
        self._batch: ScheduledBatch | None = None
        self._refused: Request | None = None
        self._seen = self._circumstances

    def remember(self, batch: ScheduledBatch, *, refused: Request | None) -> None:
        """Take the batch that the scheduler came to: it may come again if it is one token of each that runs.

        Each of them then owns the block that it writes in, and does so until somebody comes to run beside it. `refused`
        is who would have begun if there had been a place, and there is none until somebody leaves.
        """
        # In the order in which the rules go through them, too: one that has just begun comes behind all others once,
        # also where its class is higher.
        is_next_tokens = list(batch.sampled) == list(self._running) and batch.num_tokens == len(batch.requests)
        is_steady = is_next_tokens and not batch.copies
        self._batch = batch if is_steady else None
        self._refused = refused
        self._seen = self._circumstances

    def again(self) -> ScheduledBatch | None:
        """The same batch, with its blocks allocated and its tokens charged; None where the rules must be gone through.

        Some blocks may have been allocated then, and tokens charged, which the rules would have done as well.
        """
        batch = self._batch
        if batch is None or self._waiting.has_changed or self._circumstances != self._seen:
            return None
        if self._plan.budget < batch.num_tokens:
            return None
        size = self._blocks.block_size
        for request in batch.sampled:
            if request.is_paused or not request.is_generating:
                return None
            place = request.num_computed_tokens
            if place % size == 0 and not self._blocks.allocate(request.block_table, place + 1):
                return None
        self._plan.charge_again(batch.sampled)
        # Whose turn it is to begin follows from what tenants are charged.
        if self._waiting.ready.head is not self._refused:
            return None
        self._plan.end_step()
        return batch

    @property
    def _circumstances(self) -> tuple[int, int]:
        """Who runs, and how many may: while these are the same there is no place for whom there was none."""
        return self._running.num_changes, self._plan.max_num_requests
