"""The call that is being handled: what logs, exemplars and traces say of it.

Knows a trace and a name. Does not know what is called, or who calls (see `principal`). It is there for whatever
runs in the handler's task and in the tasks begun there.
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
    """What the server ends it with, whose handler only sees that it is cancelled or closed."""
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
        """Whether a call that its caller left now was left because its time is up.

        The caller's cancellation comes before our own clock has run out. The first answer stands, so that all who tell
        of a call's end tell the same.
        """
        if self._is_overdue is None:
            left = None if self.seconds is None else self.begun_at + self.seconds - time.monotonic()
            slack = _SLACK_SECONDS + _SLACK_PART * (self.seconds or 0.0)
            self._is_overdue = left is not None and left < slack
        return self._is_overdue


_call: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The call of this task; outside of a call a new one without a name or a trace, which nobody else gets."""
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
