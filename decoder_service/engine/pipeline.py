"""Has one step computed after another, and the next one begun before the last is accounted for, where that can be.

Knows the order of a step's parts. Does not know which requests are picked (see `scheduler`, and `lookahead` for what
can be planned ahead), what their tokens mean (see `bookkeeper`), or how a batch that fails is cut (see `containment`).

A step that is planned ahead goes on from tokens that nobody has seen yet:

    plan 1, launch 1, plan 2, launch 2, wait for 1, account for 1      and the turn ends; 2 runs
                      plan 3, launch 3, wait for 2, account for 2      3 runs
                                        wait for 3, account for 3      nothing could follow 3, so nothing runs
    plan 4, ...

If a step fails, the one behind it is forgotten, and what is left of the step is computed by itself. If a step that was
planned ahead fails, all tokens before it are known by then, and it is a step like any other.
"""

import logging
from typing import NamedTuple

from decoder_service.cache.block_manager import BlockManager
from decoder_service.engine.bookkeeper import Bookkeeper
from decoder_service.engine.containment import run_contained
from decoder_service.engine.device_errors import DeviceLostError, DeviceMemoryError
from decoder_service.engine.failing_clears import FailingClears
from decoder_service.engine.request_status import RequestStatus
from decoder_service.engine.step import Launched, Launcher, Runner, ScheduledBatch, StepOutput, StepResult
from decoder_service.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)


class Step(NamedTuple):
    """A batch that is to be computed, or is being computed."""

    batch: ScheduledBatch
    launched: Launched | None
    """None where it has not begun."""


class Pipeline:
    """The steps under way: none or one between two turns."""

    def __init__(
        self,
        scheduler: Scheduler,
        blocks: BlockManager,
        runner: Runner,
        bookkeeper: Bookkeeper,
        *,
        launcher: Launcher | None,
    ) -> None:
        """Take what plans, computes and accounts; without a launcher no step begins before the last has ended."""
        self._scheduler = scheduler
        self._blocks = blocks
        self._runner = runner
        self._bookkeeper = bookkeeper
        self._launcher = launcher
        self._under_way: Step | None = None
        self.num_steps = 0
        self.num_steps_ahead = 0
        """Those that began before the step before them was accounted for."""
        self.num_batched_tokens = 0
        """Tokens that the last turn computed."""
        self._clearing = FailingClears()

    @property
    def is_busy(self) -> bool:
        """Whether a step runs that is not accounted for."""
        return self._under_way is not None

    def turn(self, output: StepOutput) -> None:
        """Account for one step, and begin another one before if it can be."""
        step, self._under_way = self._under_way or self._begin(output), None
        self.num_batched_tokens = 0
        if step is not None:
            self.num_steps += 1
            self.num_batched_tokens = step.batch.num_tokens
            self._under_way = self._begin_next(step)
            self._end(step, output)

    def _begin(self, output: StepOutput) -> Step | None:
        """Plan a step when nothing runs; None where there is nothing to compute."""
        batch = self._clear(self._scheduler.schedule(output), output)
        if not batch.requests:
            return None
        # Blocks are copied once, before anything else of a step, and apart from it.
        return Step(batch, None if batch.copies else self._launch(batch))

    def _clear(self, batch: ScheduledBatch, output: StepOutput) -> ScheduledBatch:
        """Clear what must be cleared before a batch is computed; where that fails, who was to write there ends."""
        unclean = self._blocks.take_unclean()
        try:
            if unclean:
                self._runner.clear(unclean)
                self._clearing.succeeded()
        except DeviceLostError:
            raise
        except Exception as error:
            error_id = self._clearing.failed(error, len(unclean))
            self._blocks.keep_unclean(unclean)
            spoilt = [each for each in batch.requests if not set(unclean).isdisjoint(each.request.block_table)]
            self._bookkeeper.fail(batch.part(spoilt), error, error_id, output)
            live = [each for each in batch.requests if each.request.status is not RequestStatus.FINISHED]
            return ScheduledBatch(tuple(live), batch.copies)
        return batch

    def _begin_next(self, step: Step) -> Step | None:
        """Begin the step behind one that runs; None where it cannot be planned yet."""
        batch = None if step.launched is None else self._scheduler.ahead.follow(step.batch)
        if batch is None:
            return None
        launched = self._launch(batch, step.launched)
        if launched is None:
            self._scheduler.ahead.cancel(batch)
            return None
        self.num_steps_ahead += 1
        return Step(batch, launched)

    def _launch(self, batch: ScheduledBatch, after: Launched | None = None) -> Launched | None:
        """Begin to compute a batch; None where that fails, as it is to be computed by itself then."""
        try:
            return None if self._launcher is None else self._launcher.launch(batch, after)
        except DeviceLostError:
            raise
        except Exception:
            _log.exception("a step could not be begun", extra={"num_requests": len(batch.requests)})
            return None

    def _end(self, step: Step, output: StepOutput) -> None:
        """Wait for a step, or compute it, in parts if need be, and account for it."""
        try:
            self._account(step, output, error_id=f"step-{self.num_steps}")
        finally:
            self._scheduler.ahead.settle(step.batch)

    def _account(self, step: Step, output: StepOutput, *, error_id: str) -> None:
        parts = run_contained(self._runner, step.batch, step.launched, error_id=error_id, on_failure=self._failed_try)
        for part in parts:
            if isinstance(part.outcome, StepResult):
                self._bookkeeper.update(part.batch, part.outcome, output)
            else:
                self._bookkeeper.fail(part.batch, part.outcome, error_id, output)

    def _failed_try(self, batch: ScheduledBatch, error: Exception) -> None:
        """Hear of a batch that could not be computed, before anything else of it is tried."""
        self._scheduler.drafting.forget(batch)
        if isinstance(error, DeviceMemoryError):
            self._scheduler.shrink(batch)
        for each in batch.requests:
            # Of those that ended meanwhile nothing is tried again, so nobody will say what stands in their blocks.
            each.request.is_suspect |= each.request.status is RequestStatus.FINISHED
        if self._under_way is not None:
            step, self._under_way = self._under_way, None
            _wait(step.launched)
            self._scheduler.ahead.cancel(step.batch)


def _wait(launched: Launched | None) -> None:
    """See that a step is over, however it ended."""
    try:
        if launched is not None:
            launched.result()
    except DeviceLostError:
        raise
    except Exception:  # It went on from one that failed.
        return
