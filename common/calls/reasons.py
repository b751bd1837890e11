"""Counts errors by reason.

Knows that the reasons of our own errors are few; some of them arrive from another service. A peer that invents reasons
cannot create a new series with each of them.
"""

import re
from collections.abc import Collection, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter

OTHER: Final = "OTHER"
_MAX_REASONS: Final = 64
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


def bounded(reason: str, known: Collection[str]) -> str:
    """The reason itself; OTHER where it is not well-formed, or new when too many are known already."""
    is_new = reason not in known
    return OTHER if is_new and (len(known) >= _MAX_REASONS or _REASON.fullmatch(reason) is None) else reason


class ReasonCounter:
    """A counter with the label `reason`."""

    def __init__(self, name: str, help_: str, *, registry: CollectorRegistry, expected: Sequence[str] = ()) -> None:
        """Begin with the `expected` reasons at 0.

        Prometheus sees no growth in a series that comes with its first event.
        """
        self._counter = Counter(name, help_, ["reason"], registry=registry)
        self._by_reason = {reason: self._counter.labels(reason) for reason in expected}

    def count(self, reason: str) -> None:
        """Count one error, under its `bounded` reason."""
        reason = bounded(reason, self._by_reason)
        if reason not in self._by_reason:
            self._by_reason[reason] = self._counter.labels(reason)
        self._by_reason[reason].inc()
