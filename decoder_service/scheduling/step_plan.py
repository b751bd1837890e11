"""What a step is going to compute, while it is being put together.

Knows the token budget and whom its tokens are charged to. Does not know blocks, or who goes first (see `scheduler`).
"""

import math
from collections.abc import Iterable

from decoder_service.engine.request import Request
from decoder_service.engine.step import BlockCopy, ScheduledBatch, ScheduledRequest
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.scheduling.token_counters import OUTPUT_WEIGHT, TokenCounters, cost

STEPS_BEFORE_GROWTH = 100
"""Steps that must pass before the budget, once cut, is doubled again."""


class StepPlan:
    """Tokens of each request, within a budget. Empty between steps."""

    def __init__(self, config: SchedulerConfig, counters: TokenCounters) -> None:
        self._config = config
        self._counters = counters
        self._num_tokens: dict[Request, int] = {}
        self._limit = config.max_num_batched_tokens
        self._num_steps = 0
        self.budget = self._limit
        """Tokens that are left."""

    @property
    def max_num_requests(self) -> int:
        """Most requests that run at once: each needs a token in every step."""
        return min(self._config.max_num_requests, self._limit)

    def shrink(self, num_tokens: int) -> None:
        """Cut the budget of the next steps; it grows back slowly."""
        self._limit, self._num_steps = max(1, min(self._limit, num_tokens)), 0
        self.budget = self._limit

    def spare_generating(self, prompts: Iterable[Request]) -> None:
        """Keep the rest small where the step goes on with anybody's stream, as its token comes when all is computed.

        Every request that moves has its one token by now. `prompts` could have more or begin, those whose turn it is
        first; they are looked at only where there is a limit. Without one in time a stream whose second token is next
        does not count: prompts that came while its own was computed go together.
        """
        num_mixed = self._config.max_num_mixed_tokens
        if num_mixed is None:
            return
        generating = [request for request in self._num_tokens if request.is_generating]
        stretch = self._config.max_step_stretch
        num_generating = len(generating)
        if any(stretch is not None or request.num_output_tokens > 1 for request in generating):
            # So many times the step without prompts is added to it.
            added = min(self._weight(prompts), (stretch or math.inf) - 1)
            self.budget = min(self.budget, max(1, int(added * (num_mixed + num_generating))))

    def _weight(self, prompts: Iterable[Request]) -> float:
        """For how many prompts these count: each for what is left of it in units of the longest up to it; at least 1.

        A queue of equal ones counts by its length, and a short one behind a long one for little: it has to wait for
        that one, and would make steps longer all the while. Nobody counts for less as others come behind, which may be
        longer. One longer than the largest step counts as long as that, or queues behind it would grow and grow.
        """
        weight, longest = 0.0, 1
        for request in prompts:
            left = min(request.num_missing_tokens, self._config.max_num_batched_tokens)
            longest = max(longest, left)
            weight += left / longest
        return max(weight, 1.0)

    def __len__(self) -> int:
        return len(self._num_tokens)

    def __contains__(self, request: Request) -> bool:
        return request in self._num_tokens

    def most(self, request: Request) -> int:
        """Tokens that a request could have in this step."""
        return min(request.num_schedulable_tokens, self._num_tokens.get(request, 0) + self.budget)

    def set(self, request: Request, num_tokens: int) -> None:
        """Let a request have so many tokens, at the expense of its tenant: each token of a request is charged once."""
        self.drop(request)
        self._num_tokens[request] = num_tokens
        self.budget -= num_tokens
        last = request.num_computed_tokens + num_tokens
        first = max(request.num_charged_tokens, request.num_computed_tokens)
        if first < last:
            self._counters.charge(request.tenant, cost(first, last, num_prompt_tokens=request.num_prompt_tokens))
            request.num_charged_tokens = last

    def drop(self, request: Request) -> None:
        """Let a request have nothing, whether or not it had something."""
        self.budget += self._num_tokens.pop(request, 0)

    def take(self, copies: tuple[BlockCopy, ...]) -> ScheduledBatch:
        """The batch, which begins with copying blocks; the plan is empty again."""
        plan, self._num_tokens = self._num_tokens, {}
        self.end_step()
        requests = tuple(ScheduledRequest(request, num_tokens) for request, num_tokens in plan.items())
        return ScheduledBatch(requests, copies)

    def charge_again(self, requests: Iterable[Request]) -> None:
        """Charge for one more token of each of these, behind one that it had generated."""
        self._charge([(request, request.num_computed_tokens) for request in requests])

    def charge_ahead(self, requests: Iterable[ScheduledRequest]) -> None:
        """Count a step that gives each of these one more token, behind one that is being computed."""
        self._charge([(each.request, each.start) for each in requests])
        self.end_step()

    def charge_accepted(self, request: Request, num_tokens: int) -> None:
        """Charge for tokens that a request tried and that were right, the last of those that are computed."""
        end = request.num_computed_tokens
        self._charge([(request, place) for place in range(end - num_tokens, end)])

    def _charge(self, places: Iterable[tuple[Request, int]]) -> None:
        """Charge for generated tokens at these places, each tenant for all of its own at once."""
        amounts: dict[bytes, int] = {}
        for request, place in places:
            if request.num_charged_tokens <= place:
                request.num_charged_tokens = place + 1
                amounts[request.tenant] = amounts.get(request.tenant, 0) + OUTPUT_WEIGHT
        for tenant, amount in amounts.items():
            self._counters.charge(tenant, amount)

    def end_step(self) -> None:
        """Count a step, whose plan is made; the budget is that of the next one."""
        self._num_steps += 1
        if self._num_steps % STEPS_BEFORE_GROWTH == 0:
            self._limit = min(2 * self._limit, self._config.max_num_batched_tokens)
        self.budget = self._limit
