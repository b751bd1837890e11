"""Runs a batch so that what fails in it costs as few requests as possible.

Knows how a batch is cut. Does not know what a runner does, or what becomes of those that failed (see `bookkeeper`).

A batch that raises is cut in two and each half is run again, and so on down to the requests that raise alone. That is
sound because a step writes keys and values only behind the tokens that count as computed, where the next try writes
again, because the blocks that it copies were copied once and before, and because a request's tokens do not depend on
its company. It takes about 2 k log2(n / k) tries for k culprits among n, against n one by one; a fault that does not
come again costs nobody anything. Where memory runs out, the tokens of a single request are cut too, and run one half
after the other.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from decoder_service.engine.device_errors import DeviceLostError, DeviceMemoryError
from decoder_service.engine.request_status import RequestStatus
from decoder_service.engine.step import Launched, Runner, ScheduledBatch, ScheduledRequest, StepResult

_log = logging.getLogger(__name__)

OnFailure = Callable[[ScheduledBatch, Exception], None]


class Part(NamedTuple):
    """What became of a part of a batch: a result, or an error where it is a single request."""

    batch: ScheduledBatch
    outcome: StepResult | Exception


def run_contained(
    runner: Runner, batch: ScheduledBatch, launched: Launched | None, *, error_id: str, on_failure: OnFailure
) -> Iterator[Part]:
    """Run a batch, in parts if need be, which together are all of it; wait for it first, if it was launched already.

    Each part is to be accounted for before the next is asked for. `on_failure` hears of each batch that raised, before
    its parts are run; what has ended before is in none of them. Raises DeviceLostError, as then no part can pass.
    """
    if batch.copies:
        requests, error = _copy(runner, batch, error_id)
        if error is not None:
            yield from (Part(batch.part([each]), error) for each in batch.requests if each not in requests)
            batch = batch.part(_live(requests))
    if batch.requests:
        yield from _run_parts(runner, batch, launched, error_id, on_failure)


def _run_parts(
    runner: Runner, batch: ScheduledBatch, launched: Launched | None, error_id: str, on_failure: OnFailure
) -> Iterator[Part]:
    """Run a batch whose copies are made, and what it is cut into where it raises."""
    try:
        result = _checked(runner.execute(batch) if launched is None else launched.result(), batch)
    except DeviceLostError:
        raise
    except Exception as error:  # Whatever it was, it costs those that it must and not the engine.
        _log.exception("a step failed", extra={"error_id": error_id, "num_requests": len(batch.requests)})
        failure = error
    else:
        yield Part(batch, result)
        return
    on_failure(batch, failure)
    parts = list(_cut(batch, is_too_large=isinstance(failure, DeviceMemoryError)))
    if not parts and _live(batch.requests):
        yield Part(batch, failure)
    for part in parts:
        # With the first half of its tokens, or another completion of its prompt, a request may have failed by now.
        if live := _live(part.requests):
            yield from _run_parts(runner, part.part(live), None, error_id, on_failure)


def _cut(batch: ScheduledBatch, *, is_too_large: bool) -> Iterator[ScheduledBatch]:
    """Smaller batches to run instead; none where it cannot be cut."""
    if batch.num_draft_tokens:
        yield batch.part([each._replace(draft=()) for each in batch.requests])
    elif len(batch.requests) > 1:
        middle = len(batch.requests) // 2
        yield batch.part(batch.requests[:middle])
        yield batch.part(batch.requests[middle:])
    elif is_too_large and batch.num_tokens > 1:
        (scheduled,) = batch.requests
        num_first = batch.num_tokens // 2
        yield batch.part([ScheduledRequest(scheduled.request, num_first)])
        yield batch.part([ScheduledRequest(scheduled.request, batch.num_tokens - num_first)])


def _copy(runner: Runner, batch: ScheduledBatch, error_id: str) -> tuple[Sequence[ScheduledRequest], Exception | None]:
    """Make a batch's copies; the requests that can go on, and the error where those that need a copy cannot.

    It is done once, whatever is tried again: by then somebody may have written to a block that was copied.
    """
    try:
        runner.copy(batch.copies)
    except DeviceLostError:
        raise
    except Exception as error:
        _log.exception("copying failed", extra={"error_id": error_id, "num_requests": len(batch.copies)})
        targets = {copy.target for copy in batch.copies}
        return [each for each in batch.requests if targets.isdisjoint(each.request.block_table)], error
    return batch.requests, None


def _live(requests: Sequence[ScheduledRequest]) -> list[ScheduledRequest]:
    return [each for each in requests if each.request.status is not RequestStatus.FINISHED]


def _checked(result: StepResult, batch: ScheduledBatch) -> StepResult:
    if len(result.token_ids) != len(batch.sampled):
        raise ValueError(f"the runner gave {len(result.token_ids)} tokens for {len(batch.sampled)} requests")
    return result
