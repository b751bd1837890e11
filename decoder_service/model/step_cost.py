"""How many tokens more a step may have until it takes twice as long as for one.

Knows time. Does not know models: what is timed is given. A step reads all weights whatever it computes, and so many
tokens are computed in that time; it depends on the processor, its memory, the kernels and how many threads there are,
so it is measured when a service starts.
"""

import time
from collections.abc import Callable

_NUM_TOKENS = 32
"""Of the larger step: enough to tell a token's time, few enough for a large model on a slow machine."""
_ROUNDS = 3
_LONG_SECONDS = 0.5
"""A step that takes so long is not repeated: what disturbs it is small beside it."""
LEAST, MOST = 4, 200
"""Limits of the result, as others on a machine can disturb it."""


def doubling_tokens(step: Callable[[int], object], *, clock: Callable[[], float] = time.perf_counter) -> int:
    """Tokens that add to a step as much time as one token alone takes, where `step` computes so many tokens."""
    alone, many = (_least_seconds(step, num_tokens, clock) for num_tokens in (1, 1 + _NUM_TOKENS))
    each = (many - alone) / _NUM_TOKENS
    return MOST if each * MOST <= alone else max(LEAST, round(alone / each))


def _least_seconds(step: Callable[[int], object], num_tokens: int, clock: Callable[[], float]) -> float:
    least = float("inf")
    for _ in range(_ROUNDS):
        started_at = clock()
        step(num_tokens)
        least = min(least, clock() - started_at)
        if least > _LONG_SECONDS:
            break
    return least
