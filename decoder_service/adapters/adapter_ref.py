"""Which adapter a request is computed with.

Knows a place and a digest. Does not know tensors, which policy never sees.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """One of the adapters that a service has loaded, or none of them."""

    index: int
    """Its place among them, from 0; -1 is none."""
    digest: bytes
    """Of what it holds; empty for none. What is cached of a prompt is found by it."""
    name: str = ""
    """What requests ask for it by, for metrics, log and trace."""


MAX_NAME = 64
"""Letters of an adapter's name."""
ADAPTER_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")
NO_ADAPTER = AdapterRef(-1, b"")
