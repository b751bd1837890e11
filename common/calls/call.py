"""The call that is being handled: what logs, exemplars and traces say of it.

Knows a trace and a name. Does not know which method is called or who calls it (see `principal`). Everything that runs
in the handler's task, or in tasks started from it, can ask for it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from common.errors import DiptychError
from common.telemetry.spans import Span
from common.telemetry.trace_context import HEADER

_SLACK_SECONDS: Final = 0.05
_SLACK_PART: Final = 0.01
"""gRPC sends a deadline in two or three digits, rounded up, so the caller's clock runs out before ours."""


@dataclass(slots=True)
class Call:
    """One call, from its first byte to its last."""

    span: Span
    request_id: str = ""
    """Name of the generation request, once it is known."""
    seconds: float | None = None
    """Time that the caller gives it; None for any."""
    begun_at: float = field(default_factory=time.monotonic)
    ending: DiptychError | None = None
    """The error that the server ends it with; the handler itself only sees a cancellation."""
    _is_overdue: bool | None = None

    @property
    def trace_id(self) -> str:
        """The trace that the call belongs to; empty without."""
        return self.span.context.trace_id if self.span.context else ""

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What a metric may point to: a trace that somebody keeps."""
        context = self.span.context
        return {"trace_id": context.trace_id} if context is not None and context.sampled else None

    @property
    def is_overdue(self) -> bool:
        """Whether a caller that leaves now does so because the call's time is up.

        Its cancellation arrives shortly before our own clock runs out. The first answer is kept, so that metrics, log
        and trace report the same end.
        """
        if self._is_overdue is None:
            left = None if self.seconds is None else self.begun_at + self.seconds - time.monotonic()
            slack = _SLACK_SECONDS + _SLACK_PART * (self.seconds or 0.0)
            self._is_overdue = left is not None and left < slack
        return self._is_overdue


_call: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The call of this task; outside of any call a new one, without name and trace, that is not shared."""
    return _call.get() or Call(Span(None))


def trace_metadata(span: Span) -> tuple[tuple[str, str], ...]:
    """The gRPC metadata that makes a call part of a span's trace."""
    return () if span.context is None else ((HEADER, str(span.context)),)


@contextmanager
def handling(call: Call) -> Iterator[None]:
    """Make a call the current one while inside."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)
