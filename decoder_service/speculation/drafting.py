"""Lets the requests of a step try tokens that nobody knows yet, and keeps those that were right.

Knows batches, blocks and how much a step may have. Does not know where tokens to try come from (see `drafter`).

A request that gets its next token in a step may try some behind its last one in the same step, which costs little where
a step reads all weights for few tokens. Behind each of them the model tells a token, as it would if it were known. A
token that was tried is right where the model has told the same before it; so what is kept is what would have come
without, drawn tokens too, as their random numbers follow from their places alone. Keys and values of those that were
wrong lie behind what counts as computed, where the next step writes again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from decoder_service.cache.block_manager import BlockManager
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import RequestStatus
from decoder_service.engine.step import NoToken, ScheduledBatch
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.scheduling.step_plan import StepPlan
from decoder_service.speculation.drafter import Drafter
from decoder_service.structured.structure import within

MOST_READ = 2048
"""Tokens that are read in a step, in some hundred microseconds: it is not to wait for long prompts of many requests."""
LEAST_READ = 65
"""Of each request all the same: as many as a step may tell it, so that nobody who has read all falls behind."""


@dataclass(slots=True)
class DraftCounts:
    """What was tried so far."""

    num_drafts: int = 0
    """Times that a request tried anything."""
    num_draft_tokens: int = 0
    """What all of them tried."""
    num_accepted_tokens: int = 0
    """Those that were right."""


class Drafting:
    """Drafts for steps; none where `SchedulerConfig.num_speculative_tokens` is 0."""

    def __init__(
        self, config: SchedulerConfig, blocks: BlockManager, plan: StepPlan, preempt: Callable[[Request], None]
    ) -> None:
        """Take what allocates and counts, and what sends a request back to wait."""
        self._config = config
        self._blocks = blocks
        self._plan = plan
        self._preempt = preempt
        self.counts = DraftCounts()

    def extend(self, batch: ScheduledBatch) -> ScheduledBatch:
        """The batch with as much to try as it has room for, its blocks allocated; nobody gives way for that."""
        # Blocks that are copied first must be got before anything else of the step.
        if not self._config.num_speculative_tokens or batch.copies:
            return batch
        room, drafters = self._room(batch), self._drafters(batch)
        price = len(batch.requests) / self._config.num_doubling_tokens
        drafts: dict[Request, tuple[int, ...]] = {}
        num_unread = MOST_READ
        for request, drafter in drafters:
            if drafter.length(price):
                num_unread -= drafter.lookup.read(request, max(num_unread, LEAST_READ))
            if draft := self._draft(request, drafter, price=price, room=room):
                drafts[request] = draft
                room -= len(draft)
        if not drafts:
            return batch
        return ScheduledBatch(tuple(each._replace(draft=drafts.get(each.request, ())) for each in batch.requests))

    def forget(self, batch: ScheduledBatch) -> None:
        """Give back the blocks of what is not tried after all, as the step failed; anything may stand in them.

        Whose it was tries nothing any more: a fault that comes with every try would cost a step each time.
        """
        for each in batch.requests:
            if each.draft:
                self._blocks.trim(each.request.block_table, each.end)
                _give_up(each.request)

    def kept(
        self, batch: ScheduledBatch, token_ids: Sequence[int | NoToken]
    ) -> Iterator[tuple[Request, int | NoToken]]:
        """The tokens that count, of all that a step told for `batch.sampled`, and whose they are, in order.

        Each is to be taken by its request before the next one is asked for: with the last token that it takes a request
        may end. What was tried and is right counts as computed from its turn on.
        """
        rows = zip(batch.sampled, token_ids, strict=True)
        return self._kept_of_all(batch, rows) if batch.num_draft_tokens else rows

    def _kept_of_all(
        self, batch: ScheduledBatch, rows: Iterator[tuple[Request, int | NoToken]]
    ) -> Iterator[tuple[Request, int | NoToken]]:
        drafts = {each.request: each.draft for each in batch.requests}
        for request, token_id in rows:
            if draft := drafts.get(request):
                yield from self._kept(request, draft, [token_id, *(behind for _, behind in islice(rows, len(draft)))])
            else:
                yield request, token_id

    def _room(self, batch: ScheduledBatch) -> int:
        """Tokens that may be tried in a step: by prompts and them it takes twice as long at most, or less if asked for.

        So much a stream may lose by what others try; all together gain by it.
        """
        config, num_prompt_tokens = self._config, batch.num_tokens - len(batch.requests)
        added = 1.0 if config.max_step_stretch is None else min(config.max_step_stretch - 1, 1.0)
        most = int(added * config.num_doubling_tokens) - num_prompt_tokens
        return max(0, min(self._plan.budget - batch.num_tokens, most))

    def _drafters(self, batch: ScheduledBatch) -> list[tuple[Request, Drafter]]:
        """Who may try anything, those first whose tries are likeliest to be right."""
        found = []
        for request in [each.request for each in batch.requests if each.request.is_generating]:
            if request.output_token_ids and _may_try(request):
                if request.drafter is None:
                    most_tokens = request.num_prompt_tokens + request.sampling.max_tokens
                    request.drafter = Drafter(most=self._config.num_speculative_tokens, most_tokens=most_tokens)
                found.append((request, request.drafter))
        return sorted(found, key=lambda each: -each[1].likelihood)

    def _draft(self, request: Request, drafter: Drafter, *, price: float, room: int) -> tuple[int, ...]:
        """What a request tries in a step, its blocks allocated; nothing where none are free."""
        left = request.sampling.max_tokens - request.num_output_tokens - 1  # One comes without.
        draft = _forced(request) if price < 1 else ()
        draft = draft[: min(drafter.most, room, left)]
        if not draft and (length := drafter.length(price)):
            draft = drafter.lookup.draft(request, min(length, room, left))
            draft = draft if request.matcher is None else within(request.matcher, draft)
        elif not draft:
            drafter.passed()
        return draft if self._blocks.allocate(request.block_table, request.num_tokens + len(draft)) else ()

    def _kept(
        self, request: Request, draft: tuple[int, ...], told: Sequence[int | NoToken]
    ) -> Iterator[tuple[Request, int | NoToken]]:
        """See `kept`: of one request that tried `draft`, and was told a token behind each of it and one before."""
        if NoToken.NOT_FINITE in told:
            return self._start_over(request)
        yield request, told[0]
        num_accepted = 0
        while (
            num_accepted < len(draft)
            and told[num_accepted] == draft[num_accepted]
            and not isinstance(told[num_accepted + 1], NoToken)  # Why there is none its next step tells.
            and request.status is RequestStatus.RUNNING
        ):
            num_accepted += 1
            request.num_computed_tokens += 1
            yield request, told[num_accepted]
        self._plan.charge_accepted(request, num_accepted)
        self._count(request, len(draft), num_accepted)
        # Where it has ended its blocks are given back already.
        self._blocks.trim(request.block_table, request.num_computed_tokens, is_clean=True)

    def _start_over(self, request: Request) -> None:
        """Have a request computed again without trying anything, as what it tried may be why a row is not finite."""
        if request.status is RequestStatus.RUNNING:
            self._preempt(request)
        _give_up(request)

    def _count(self, request: Request, num_tokens: int, num_accepted: int) -> None:
        self.counts.num_drafts += 1
        self.counts.num_draft_tokens += num_tokens
        self.counts.num_accepted_tokens += num_accepted
        if request.drafter is not None:
            request.drafter.tried(num_tokens, num_accepted)


def _may_try(request: Request) -> bool:
    """Whether its tokens can be told without one after another being counted, or told more of."""
    return not request.sampling.steers_logits and request.sampling.logprobs is None


def _forced(request: Request) -> tuple[int, ...]:
    """What the language that a request is kept inside leaves no choice about."""
    return () if request.matcher is None else tuple(request.matcher.forced())


def _give_up(request: Request) -> None:
    """Let a request try nothing any more."""
    if request.drafter is not None:
        request.drafter.give_up()
