"""What all engines of a comparison are measured under.

Knows settings. Does not know engines or cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The same for every engine, but for the type of ours."""

    folder: Path
    """Where the peers' environments are."""
    cores: Sequence[int]
    """That every engine is pinned to."""
    rounds: int
    niceness: int
    our_dtype: str = "float32"
    """What we compute in; peers' types are their own."""
