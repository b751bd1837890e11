"""What may be known of a vision replica, and what makes it so.

    UNREACHABLE --handshake--> READY        <-- the only state that gets work
         ^      --handshake--> MISMATCH         another model, or another version of the API
         ├── a call or a probe fails
         ├── after a pause -- BAD <-- three bad streams in a row
         └── its health says SERVING -- DRAINING <-- its health says NOT_SERVING

Knows names. Does not know who finds out (see `replica`).
"""

from enum import Enum


class ReplicaState(Enum):
    """What is known of a replica."""

    UNREACHABLE = "unreachable"
    MISMATCH = "mismatch"
    READY = "ready"
    DRAINING = "draining"
    BAD = "bad"
