"""How much work each tenant has been given, in tokens, so that whoever got least can go next.

Knows tenants and sums. Does not know requests or queues (see `fair_queue`).

The algorithm is the Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024):
a tenant's counter grows with every token that is computed for it, an output token counting twice as much as a
prompt's token. The tenant with the smallest counter goes next, and one that comes back after a pause is lifted to
those that kept waiting, so that nobody saves up a right to service. Unlike there, a prompt is not charged when it
is admitted but as its chunks are scheduled, so that chunks too can be shared out by the counters; what the prefix
cache held is not charged, nor what a preemption computes again.
"""

from collections import OrderedDict

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2
"""Against a prompt's token: it needs a step of its own, and a place in the batch meanwhile."""

MAX_TENANTS = 4096
"""Beyond it the counter that was not touched for longest is forgotten; its tenant starts anew like a new one."""


class TokenCounters:
    """One counter for each tenant; they only grow."""

    def __init__(self) -> None:
        self._counters: OrderedDict[bytes, int] = OrderedDict()

    def get(self, tenant: bytes) -> int:
        """The tenant's counter; 0 for one that is not known."""
        return self._counters.get(tenant, 0)

    def charge(self, tenant: bytes, amount: int) -> None:
        """Note that something was done for a tenant."""
        self._set(tenant, self.get(tenant) + amount)

    def lift(self, tenant: bytes, floor: int) -> None:
        """See that a tenant which begins to wait is not ahead of those that waited all along."""
        if self.get(tenant) < floor:
            self._set(tenant, floor)

    def _set(self, tenant: bytes, counter: int) -> None:
        self._counters[tenant] = counter
        self._counters.move_to_end(tenant)
        if len(self._counters) > MAX_TENANTS:
            self._counters.popitem(last=False)


def cost(first: int, last: int, *, num_prompt_tokens: int) -> int:
    """What the tokens from position `first` up to `last` of a request count."""
    num_prompt = max(0, min(last, num_prompt_tokens) - first)
    return PROMPT_WEIGHT * num_prompt + OUTPUT_WEIGHT * (last - first - num_prompt)
