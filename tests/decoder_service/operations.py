"""How many random operations the state machines do: some ten thousand, or as many as a nightly run asks for."""

import os

from hypothesis import HealthCheck, settings

VARIABLE = "PROPERTY_OPERATIONS"
"""Environment variable with the number for each machine; a million takes some thirty minutes of processor time each."""
OPERATIONS_PER_EXAMPLE = 40


def operations(default: int) -> settings:
    """Settings for about as many operations in all."""
    count = int(os.environ.get(VARIABLE, default))
    return settings(
        max_examples=max(1, count // OPERATIONS_PER_EXAMPLE),
        stateful_step_count=OPERATIONS_PER_EXAMPLE,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
