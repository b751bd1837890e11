"""Whether a waiting request can run, and who must give way for it.

Knows how many may run and how many blocks are free. Does not know whose turn it is, and changes nothing (see
`scheduler`).
"""

from collections.abc import Sequence

from decoder_service.cache.block_manager import BlockId, BlockManager
from decoder_service.engine.request import Request
from decoder_service.scheduling.running import RunningRequests, num_places_of
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.scheduling.step_plan import StepPlan


class Room:
    """The places in the batch and the blocks."""

    def __init__(self, config: SchedulerConfig, blocks: BlockManager, running: RunningRequests, plan: StepPlan) -> None:
        self._config = config
        self._plan = plan
        self._blocks = blocks
        self._running = running

    @property
    def num_free_places(self) -> int:
        """Places in the batch that nobody has."""
        return max(0, self._plan.max_num_requests - num_places_of(self._running))

    def has_place(self, request: Request) -> bool:
        """Whether there is a place in the batch for a request, or somebody who must give it one."""
        num_places = num_places_of((request, *self._running))
        is_free = num_places <= self._plan.max_num_requests or not len(self._running)
        return is_free or bool(self._running.victims_for(request))

    def victims_for(self, request: Request, found: Sequence[BlockId]) -> list[Request] | None:
        """The fewest that must give way to let a request run that shares the found blocks; None if it cannot."""
        if self._holds(request, found, ()):
            return []
        victims = self._running.victims_for(request)
        if not victims or not self._holds(request, found, victims):
            return None
        while self._holds(request, found, victims[:-1]):
            victims.pop()
        return victims

    def _holds(self, request: Request, found: Sequence[BlockId], victims: Sequence[Request]) -> bool:
        """Whether there is a place and blocks for a request if the victims give theirs.

        Blocks are taken step by step, but all that it needs for its known tokens must be free: else it would run out
        halfway and be computed again. While others run some must be left, else one of those would run out at once.
        """
        num_others = num_places_of(self._running) - num_places_of(victims)
        # One that runs alone may be of more completions than a short budget has tokens for.
        if num_others and num_others + request.num_places > self._plan.max_num_requests:
            return False
        return self._blocks.fits(
            request.num_tokens,
            found,
            freed=self._blocks.freed_by(victim.block_table for victim in victims),
            num_spare=self._config.num_spare_blocks if num_others else 0,
        )
