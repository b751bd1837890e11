"""Which trace a call belongs to, as W3C's `traceparent` says it.

    00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
    version, trace id, span id of the caller, flags of which the lowest bit says "sampled"

Knows the text. Does not know spans, or who records them (see `tracing`).
"""

import re
from dataclasses import dataclass
from typing import Final

HEADER: Final = "traceparent"
"""Name of the gRPC metadata."""

_FORMAT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace: what is done next is done for this span."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool

    def __str__(self) -> str:
        """The `traceparent` that says so."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse_traceparent(text: str) -> TraceContext | None:
    """The context of a `traceparent`; None where it is none, which is no reason to refuse a call."""
    found = _FORMAT.fullmatch(text[:256])
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    # A later version may have more after the flags; this one may not.
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, sampled=bool(int(flags, 16) & 1))
