"""Whether the scheduler's books agree with each other; asked by tests after every operation.

Knows what must hold between steps. Changes nothing.
"""

from collections.abc import Collection

from decoder_service.cache.block_manager import BlockManager, IntegrityError
from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import RequestStatus
from decoder_service.scheduling.running import RunningRequests
from decoder_service.scheduling.waiting import WaitingRequests


def check_books(
    requests: Collection[Request],
    leaving: Collection[Request],
    waiting: WaitingRequests,
    running: RunningRequests,
    blocks: BlockManager,
    prefix_cache: PrefixCache,
) -> None:
    """Compare all places with `requests`, all that have not ended. Raises IntegrityError.

    `leaving` are those that have ended while they were computed ahead, and so still own blocks.
    """
    places = [*waiting, *running]
    if len(places) != len(requests) or set(places) != set(requests):
        raise IntegrityError("a request is in no place, or in two")
    if len(waiting) + len(running) != len(places):
        raise IntegrityError("requests are not counted right")
    waiting.check_integrity()
    running.check_integrity()
    are_running = set(running)
    for request in requests:
        _check_request(request, is_running=request in are_running, blocks=blocks)
    for request in leaving:
        if request.status is not RequestStatus.FINISHED or not request.num_ahead_tokens:
            raise IntegrityError(f"request {request.completion_id} leaves, but was not computed ahead or goes on")
    blocks.check_integrity(request.block_table for request in (*requests, *leaving))
    prefix_cache.check_integrity(requests)


def _check_request(request: Request, *, is_running: bool, blocks: BlockManager) -> None:
    if request.status is not (RequestStatus.RUNNING if is_running else RequestStatus.WAITING):
        raise IntegrityError(f"request {request.completion_id} is {request.status.name} in the wrong place")
    num_tokens = request.num_computed_tokens + request.num_ahead_tokens
    if not is_running and num_tokens:
        raise IntegrityError(f"request {request.completion_id} waits with computed tokens")
    if len(request.block_table) != blocks.num_blocks_for(num_tokens):
        raise IntegrityError(
            f"request {request.completion_id} owns {len(request.block_table)} blocks for {num_tokens} computed tokens"
        )
    if any(fork.block_table or fork.num_computed_tokens for fork in request.forks):
        raise IntegrityError(f"request {request.completion_id} has completions that began before it")
    if request.num_charged_tokens < request.num_computed_tokens:
        raise IntegrityError(f"request {request.completion_id} had tokens that nobody was charged for")
